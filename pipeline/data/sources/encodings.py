"""Decode text files and the names in zips, in the encodings that spreadsheets and old archivers write."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from charset_normalizer import from_bytes

from pipeline.config.errors import DataError

# In order of preference, for texts that are too short to tell. (Korean as EUC-KR only: Windows' extension of it accepts
# almost all Japanese text.)
_ASIAN = ("gb18030", "cp932", "euc_kr", "big5", "euc_jp")
_ALPHABETS = ("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")
_WESTERN = ("cp1252", "mac_roman")
# Share of bytes above 127 (of all but white space), above which a text is in another script than Latin.
_OTHER_SCRIPT = 0.25
_HEAD = 2**16  # bytes that are looked at


def decode(data: bytes, place: str) -> tuple[str, str]:
    """Decode a text file; return the text and the encoding.

    UTF-8 and UTF-16 are recognised with and without BOM. Other encodings are detected: Windows' and the Mac's for Latin
    letters, and Chinese, Japanese, Korean and Cyrillic ones.

    Raises:
        DataError: the encoding cannot be detected, or the file is damaged UTF-8 or UTF-16; names the line.
    """
    utf_16 = _utf_16(data)
    if utf_16:
        try:
            return data.decode(utf_16).removeprefix("\ufeff"), utf_16
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is cut off or damaged UTF-16 (byte {error.start:,}); save it as UTF-8") from None
    has_bom = data.startswith(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8-sig"), "utf-8-sig" if has_bom else "utf-8"
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
    # Valid non-ASCII UTF-8 characters beside invalid ones are damaged UTF-8; in another encoding all would be garbled.
    # (Chinese encodings contain valid ones by accident.)
    non_ascii = [c for c in data.decode("utf-8", "replace") if c > "\x7f"]
    broken = non_ascii.count("\ufffd")
    damaged = len(non_ascii) - broken > (broken if _is_other_script(data) else broken // 4)
    encoding = None if has_bom or b"\0" in data or damaged else detect(data)
    if encoding is None:
        raise DataError(f"{place}: line {line} is not UTF-8; save the file as UTF-8")
    return data.decode(encoding), encoding


def detect(data: bytes) -> str | None:
    """Return the encoding of a text that is not Unicode; None if it fits no encoding that is known here."""
    candidates = (*_ASIAN, *_ALPHABETS) if _is_other_script(data) else _WESTERN
    possible = [one for one in candidates if _decodes(data, one)]
    return _best(data, possible) if len(possible) > 1 else next(iter(possible), None)


def _is_other_script(data: bytes) -> bool:
    high = sum(byte > 0x7F for byte in data[:_HEAD])
    visible = sum(byte > 0x20 for byte in data[:_HEAD])
    return high > _OTHER_SCRIPT * visible


def _best(data: bytes, possible: Sequence[str]) -> str:
    # A cut at a line break keeps characters of several bytes whole.
    head = data if len(data) <= _HEAD else data[: data.rfind(b"\n", 0, _HEAD) + 1] or data
    found = from_bytes(head, cp_isolation=list(possible))
    ranks = {match.encoding: (match.chaos, -match.coherence, possible.index(match.encoding)) for match in found}
    return min(ranks, key=ranks.__getitem__, default=possible[0])


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _utf_16(data: bytes) -> str | None:
    """Return the UTF-16 encoding of a text; None if it is not UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a BOM every other byte of the ASCII characters (a header, line breaks, file names) is zero.
    even, odd = data[:_HEAD:2].count(0), data[1:_HEAD:2].count(0)
    if min(even, odd) or max(even, odd) <= len(data[:_HEAD]) // 20:
        return None
    encoding = "utf-16-le" if odd else "utf-16-be"
    return encoding if data[:4].decode(encoding, "replace").strip().isprintable() else None


def decode_names(names: Sequence[str], raw: Sequence[bytes]) -> list[str]:
    """Return the names of files in a zip that does not say how they are encoded.

    Args:
        names: as read with code page 437, which the zip format prescribes and few archivers use.
        raw: the bytes of the names.
    """
    text = b"\n".join(name for name in raw if not name.isascii())
    if _decodes(text, "utf-8"):
        return [name.decode("utf-8") for name in raw]
    stems = b"\n".join(name.rpartition(b"/")[2].partition(b".")[0] for name in raw)
    asian = [one for one in _ASIAN if _decodes(text, one)]
    if not asian or not _is_other_script(stems):  # single accented letters are indeed code page 437
        return list(names)
    encoding = _best(text, asian)
    return [name.decode(encoding) for name in raw]
