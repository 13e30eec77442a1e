"""Decode text files, and parse delimited text (CSV, TSV) with a picture column and a caption column."""

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

csv.field_size_limit(2**30)  # captions may be of any length


@dataclass(frozen=True)
class Table:
    """A table of captions.

    Attributes:
        encoding: Python's name of it.
        delimiter: `comma`, `semicolon` or `tab`.
        rows: for each row its number (the header is row 1), and its picture and caption; None instead of both if it
            has fewer or more fields than the first row.
    """

    encoding: str
    delimiter: str
    rows: Iterator[tuple[int, tuple[str, str] | None]]


def decode(data: bytes, place: str) -> tuple[str, str]:
    """Decode UTF-8 (with or without BOM), UTF-16 with BOM, or cp1252 (old Excel); return the text and the encoding.

    Raises:
        DataError: the file has another encoding, or is damaged UTF-8; names the line.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), "utf-16"
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is cut off or damaged UTF-16 (byte {error.start:,}); save it as UTF-8") from None
    has_bom = data.startswith(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8-sig"), "utf-8-sig" if has_bom else "utf-8"
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
    # A file with valid non-ASCII UTF-8 characters beside invalid ones is damaged UTF-8; as cp1252 all would be garbled.
    non_ascii = [c for c in data.decode("utf-8", "replace") if c > "\x7f"]
    broken = non_ascii.count("\ufffd")
    if not has_bom and b"\0" not in data and len(non_ascii) - broken <= broken // 4:
        try:
            return data.decode("cp1252"), "cp1252"
        except UnicodeDecodeError:
            pass
    raise DataError(f"{place}: line {line} is not UTF-8; save the file as UTF-8")


def read_table(data: bytes, place: str) -> Table:
    """Parse a table of captions; its header determines the columns and the delimiter.

    A table without a header, like Kaggle's second Instagram CSV, must have three columns: number, picture, caption.
    Lines end in LF or CRLF, and quoted captions may contain line breaks.

    Args:
        data: the file's bytes.
        place: the file's path, for messages.

    Raises:
        DataError: the file cannot be decoded, has no rows, or lacks a column; names the row.
    """
    text, encoding = decode(data, place)
    seen: list[str] = []
    broken = None
    for delimiter, name in _DELIMITERS.items():
        try:
            _, fields = next(_records(text, delimiter, place), (0, []))
        except DataError as error:  # quotes that are only valid with another delimiter
            broken = error
            continue
        columns = _columns(fields)
        headerless = len(fields) == 3 and fields[0].strip().isdigit() and bool(fields[1].strip())
        if columns or headerless:
            return Table(encoding, name, _rows(text, delimiter, place, columns))
        seen = max(seen, fields, key=len)
    if broken and not seen:
        raise broken
    if not seen:
        raise DataError(f"{place}: has no rows; {_HINT}, and add a row for each caption")
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
            if any(field.strip() for field in fields):  # blank lines are skipped
                yield number, fields
    except csv.Error as error:
        raise DataError(f"{place}: row {number + 1}: {error}; fix the quotes in that row") from None


def _columns(header: list[str]) -> tuple[int, int] | None:
    names = [name.strip().lower() for name in header]
    picture = next((names.index(name) for name in _PICTURE_COLUMNS if name in names), None)
    caption = next((names.index(name) for name in _CAPTION_COLUMNS if name in names), None)
    return None if picture is None or caption is None else (picture, caption)
