"""Tables of captions: bytes in any of the usual encodings -> rows of fields, by any of the usual delimiters."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.errors import DataError

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
_PICTURE_COLUMNS = ("image", "image file", "file_name", "filename")
_CAPTION_COLUMNS = ("caption", "captions", "text")
_HINT = "name the columns `image` and `caption`"

csv.field_size_limit(2**30)  # a caption is a field, however long somebody made it


@dataclass(frozen=True)
class Table:
    """A table of captions.

    Attributes:
        encoding: as Python names it.
        delimiter: `comma`, `semicolon` or `tab`.
        rows: of each its number (the header is row 1) and its picture and caption; None for both where it has
            fewer or more fields than the first row.
    """

    encoding: str
    delimiter: str
    rows: Iterator[tuple[int, tuple[str, str] | None]]


def decode(data: bytes, place: str) -> tuple[str, str]:
    """Text out of UTF-8 (with or without a mark), UTF-16 with its mark, or cp1252 (old Excel); and which it was.

    Raises:
        DataError: it is none of these, or UTF-8 that was damaged; names the line.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), "utf-16"
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is cut off or damaged UTF-16 (byte {error.start:,}); save it as UTF-8") from None
    marked = data.startswith(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8-sig"), "utf-8-sig" if marked else "utf-8"
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
    # Whole UTF-8 letters beside the broken ones: that is damaged UTF-8. To read it as cp1252 would garble all of them.
    letters = [c for c in data.decode("utf-8", "replace") if c > "\x7f"]
    broken = letters.count("\ufffd")
    if not marked and b"\0" not in data and len(letters) - broken <= broken // 4:
        try:
            return data.decode("cp1252"), "cp1252"
        except UnicodeDecodeError:
            pass
    raise DataError(f"{place}: line {line} is not UTF-8; save the file as UTF-8")


def read_table(data: bytes, place: str) -> Table:
    """Read a table of captions: its header says which columns, and with which delimiter.

    Without a header, as Kaggle's second Instagram CSV comes, it must have a number, a picture and a caption.
    Lines may end in LF or CRLF, and quoted captions may hold line breaks.

    Args:
        data: the file's bytes.
        place: the file's path, for messages.

    Raises:
        DataError: it can't be decoded, has no rows, or lacks a column; names the row.
    """
    text, encoding = decode(data, place)
    seen: list[str] = []
    broken = None
    for delimiter, called in _DELIMITERS.items():
        try:
            _, fields = next(_records(text, delimiter, place), (0, []))
        except DataError as error:  # quotes that only make sense with another delimiter
            broken = error
            continue
        columns = _columns(fields)
        headerless = len(fields) == 3 and fields[0].strip().isdigit() and bool(fields[1].strip())
        if columns or headerless:
            return Table(encoding, called, _rows(text, delimiter, place, columns))
        seen = max(seen, fields, key=len)
    if broken and not seen:
        raise broken
    if not seen:
        raise DataError(f"{place}: has no rows; {_HINT} and add a row for each caption")
    raise DataError(f"{place}: row 1: found the columns {', '.join(seen[:8])}; {_HINT}")


def _rows(
    text: str, delimiter: str, place: str, columns: tuple[int, int] | None
) -> Iterator[tuple[int, tuple[str, str] | None]]:
    picture, caption = columns or (1, 2)
    width = None
    for number, fields in _records(text, delimiter, place):
        if width is None:
            width = len(fields)
            if columns:
                continue
        if len(fields) <= max(picture, caption) or any(field.strip() for field in fields[width:]):
            yield number, None
        else:
            yield number, (fields[picture].strip(), fields[caption])


def _records(text: str, delimiter: str, place: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for number, fields in enumerate(reader, start=1):
            if any(field.strip() for field in fields):  # a blank line is no row
                yield number, fields
    except csv.Error as error:
        raise DataError(f"{place}: row {number + 1}: {error}; correct the quotes of that row") from None


def _columns(header: list[str]) -> tuple[int, int] | None:
    names = [name.strip().lower() for name in header]
    picture = next((names.index(name) for name in _PICTURE_COLUMNS if name in names), None)
    caption = next((names.index(name) for name in _CAPTION_COLUMNS if name in names), None)
    return None if picture is None or caption is None else (picture, caption)
