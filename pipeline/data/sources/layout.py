"""What a layout is: how the captions files of one kind of source are recognised and read.

A layout is one module of this package that defines a `LAYOUT` and is listed in `layouts.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.config.errors import DataError
from pipeline.data.dataset import RawCaption, Withdrawn
from pipeline.data.sources.archive import Files
from pipeline.data.sources.delimited import USUAL_COLUMNS, Columns
from pipeline.data.sources.encodings import decode

# What projects of labelling tools usually call the field of the caption.
CAPTION_FIELD = re.compile(r"caption|text|descri|comment", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionRow:
    """A caption and the picture that it names.

    Attributes:
        picture: the picture's name or path as written in the row, with or without suffix; None if the row is malformed.
        caption: the text, and the file and row that it comes from.
        folder: the folder that relative paths start from; "" for the top of the zip or of the source.
        post: identifies a post that shows several pictures with one caption; None for a single picture.
        split: `train`, `validation` or `test`, if the data set has splits of its own.
        set_aside: the reason (of `audit.ROW_REASONS`) why the layout itself leaves the row out; None if it does not.
    """

    picture: str | None
    caption: RawCaption
    folder: str
    post: int | None = None
    split: str | None = None
    set_aside: str | None = None


class Captions(NamedTuple):
    """The content of a captions file.

    Attributes:
        encoding: how the file is encoded, for the report (`utf-8`; `utf-8, comma`).
        rows: read lazily, so a `DataError` about a row is raised while iterating.
        withdrawn: captions to remove from pictures of other sources; None if the layout has no such thing.
    """

    encoding: str
    rows: Iterator[CaptionRow]
    withdrawn: Sequence[Withdrawn] | None = None


@dataclass(frozen=True)
class CaptionsFile:
    """A captions file whose bytes have been read; its layout decides whether they are text.

    Attributes:
        data: the bytes of the file.
        place: its path from the workspace, for error messages.
        member: its path from the source's folder, for records and reports.
        name: its path within its zip or the source.
        columns: the columns to read, if it is a table.
    """

    data: bytes
    place: str
    member: str
    name: str
    columns: Columns = USUAL_COLUMNS

    @property
    def folder(self) -> str:
        """The folder that contains it, within its zip or the source."""
        return self.name.rpartition("/")[0]

    @property
    def base(self) -> str:
        """Its name without folders."""
        return self.name.rpartition("/")[2]

    def row(self, number: int, picture: object, caption: object, split: str | None = None) -> CaptionRow:
        """Return a row of this file; it is malformed unless `picture` and `caption` are strings."""
        if isinstance(picture, str) and isinstance(caption, str):
            return CaptionRow(picture.strip(), RawCaption(caption, self.member, number), self.folder, split=split)
        return CaptionRow(None, RawCaption("", self.member, number), self.folder)

    def lines(self) -> tuple[str, Iterator[tuple[int, str]]]:
        """Return the encoding, and the lines with their numbers (from 1); blank lines are skipped.

        Raises:
            DataError: the file is not text.
        """
        text, encoding = decode(self.data, self.place)
        numbered = enumerate(text.split("\n"), start=1)
        return encoding, ((number, line) for number, line in numbered if line.strip())

    def json(self) -> tuple[str, Any]:
        """Return the encoding and the parsed content.

        Raises:
            DataError: the file is not JSON.
        """
        text, encoding = decode(self.data, self.place)
        return encoding, parse_json(text, self.place)


@dataclass(frozen=True)
class Layout:
    """A layout of captions files.

    Attributes:
        name: as reports and messages show it.
        expected: the file names that it looks for, for the message about a source without captions.
        suffixes: what the names of its files end in, in lower case. No other file is passed to `recognises`, so that
            a million pictures cost little.
        recognises: whether the member at this index is a captions file of this layout. It may look at the member's
            name, at the other members, and at the content (`files.read`).
        read: reads one captions file. Raises `DataError`, which names the file and row, if the content does not fit
            the layout.
        may_be_empty: whether a source without a usable picture is no error.
    """

    name: str
    expected: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Files, int], bool]
    read: Callable[[CaptionsFile], Captions]
    may_be_empty: bool = False


def named(pattern: str) -> Callable[[Files, int], bool]:
    """Return a `Layout.recognises` that matches file names (without folders, in lower case) against a regex."""
    regex = re.compile(pattern)
    return lambda files, index: bool(regex.fullmatch(files.members[index].base.lower()))


def parse_json(text: str, place: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: the text is not JSON; names `place`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not valid JSON ({error}); export or download the file again") from None


def required_list(value: object, key: str, place: str) -> list[Any]:
    """Return the list at `key` of a JSON object.

    Raises:
        DataError: there is no such list; names `place`.
    """
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{place}: has no list `{key}`; use the file as published with the data set")
    return items
