"""Parse delimited text (CSV, TSV) with a picture column and a caption column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.errors import DataError
from pipeline.data.sources.encodings import decode

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_PICTURE_COLUMNS = ("image", "image file", "file_name", "filename", "image_name", "image_path", "image_file", "file")
_CAPTION_COLUMNS = ("caption", "captions", "text", "description", "comment")
_HINT = "name the columns `image` and `caption`, or set ingest.columns in params.yaml"
# Excel's own way to name the delimiter, in a line before the header.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n')

csv.field_size_limit(2**30)  # captions may be of any length


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read; None stands for the usual names."""

    picture: str | None = None
    caption: str | None = None


USUAL_COLUMNS = Columns()


@dataclass(frozen=True)
class Table:
    """A table of captions.

    Attributes:
        encoding: Python's name of it.
        delimiter: `comma`, `semicolon`, `tab` or `pipe`.
        rows: for each row its number (the header is row 1), and its picture and caption; None instead of both if it
            has fewer or more fields than the first row.
    """

    encoding: str
    delimiter: str
    rows: Iterator[tuple[int, tuple[str, str] | None]]


def read_table(data: bytes, place: str, wanted: Columns = USUAL_COLUMNS) -> Table:
    """Parse a table of captions; its header determines the columns and the delimiter.

    A table without a header, like Kaggle's second Instagram CSV, must have three columns: number, picture, caption.
    Lines end in LF or CRLF, and quoted captions may contain line breaks.

    Args:
        data: the file's bytes.
        place: the file's path, for messages.
        wanted: the names of the columns.

    Raises:
        DataError: the file cannot be decoded, has no rows, or lacks a column; names the row.
    """
    text, encoding = decode(data, place)
    said = _SEPARATOR_LINE.match(text)
    first = 2 if said else 1
    text = text[said.end() :] if said else text
    delimiters = {said[1]: _DELIMITERS.get(said[1], said[1])} if said else _DELIMITERS
    seen: list[str] = []
    broken = None
    for delimiter, name in delimiters.items():
        try:
            _, fields = next(_records(text, delimiter, place, first), (0, []))
        except DataError as error:  # quotes that are only valid with another delimiter
            broken = error
            continue
        columns = find_columns(fields, wanted)
        headerless = len(fields) == 3 and fields[0].strip().isdigit() and bool(fields[1].strip())
        if columns or headerless:
            return Table(encoding, name, _rows(_records(text, delimiter, place, first), columns))
        seen = max(seen, fields, key=len)
    if broken and not seen:
        raise broken
    if not seen:
        raise DataError(f"{place}: has no rows; {_HINT}, and add a row for each caption")
    raise DataError(f"{place}: row {first}: found the columns {', '.join(seen[:8])}; {_HINT}")


def is_captions(data: bytes, place: str, wanted: Columns) -> bool:
    """Return whether a table has a picture column and a caption column."""
    try:
        read_table(data, place, wanted)
    except DataError:
        return False
    return True


def _rows(
    records: Iterator[tuple[int, list[str]]], columns: tuple[int, int] | None
) -> Iterator[tuple[int, tuple[str, str] | None]]:
    picture, caption = columns or (1, 2)
    width = None
    for number, fields in records:
        if width is None:
            width = len(fields)
            if columns:
                continue
        if len(fields) <= max(picture, caption) or any(field.strip() for field in fields[width:]):
            yield number, None
        else:
            yield number, (fields[picture].strip(), fields[caption])


def _records(text: str, delimiter: str, place: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, with their numbers from `first`."""
    number = first - 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for number, fields in enumerate(reader, start=first):
            if any(field.strip() for field in fields):  # blank lines are skipped
                yield number, fields
    except csv.Error as error:
        raise DataError(f"{place}: row {number + 1}: {error}; fix the quotes in that row") from None


def find_columns(header: Sequence[str], wanted: Columns) -> tuple[int, int] | None:
    """Return the places of the picture column and the caption column in a header; None if one is missing.

    A table without the wanted column is searched for the usual names.
    """
    names = [name.strip().lower() for name in header]

    def place(name: str | None, usual: Sequence[str]) -> int | None:
        candidates = (name.strip().lower(), *usual) if name else usual
        return next((names.index(one) for one in candidates if one in names), None)

    picture, caption = place(wanted.picture, _PICTURE_COLUMNS), place(wanted.caption, _CAPTION_COLUMNS)
    return None if picture is None or caption is None else (picture, caption)
