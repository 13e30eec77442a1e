"""What people bring: a folder below `data/raw` -> an archive of pictures, and rows of captions.

A source's layout is recognised by what is in it:

* a pair: one `.csv` and one `.zip`
* Flickr8k, as Kaggle has it: `captions.txt` (a CSV) and one `.zip`
* Kaggle's instagram-images-with-captions: one `.zip` with the CSVs inside, the second without a header row
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.archive import Archive, Member, MemberError
from pipeline.data.records import Row
from pipeline.errors import DataError

_PICTURE_COLUMNS = ("image", "image file", "file_name", "filename")
_CAPTION_COLUMNS = ("caption", "captions", "text")
_HINT = "name the columns `image` and `caption`"
_CSV_BYTES = 2**30


@dataclass(frozen=True)
class CaptionRow:
    """A row of a captions file: which picture it names (as it stands there), or none where it is malformed.

    `folder` is the archive's folder in which the captions file stands ("" at the top, and for a file
    beside the archive).
    """

    picture: str | None
    caption: Row
    folder: str


@dataclass(frozen=True)
class Source:
    """The files of a source: the archive, and the captions file beside it (none where they are inside)."""

    archive: Path
    captions: Path | None


def find(folder: Path) -> Source:
    """Recognise the layout of a source's folder.

    Raises:
        DataError: there is no such folder, or its files fit no layout; lists what was seen.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: not found; put the .zip of pictures and the .csv of captions there, or `dvc pull {folder}.dvc`"
        )
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    zips = [p for p in files if p.suffix.lower() == ".zip"]
    tables = [p for p in files if p.suffix.lower() == ".csv" or p.name == "captions.txt"]
    if len(zips) != 1 or len(tables) > 1:
        seen = ", ".join(p.name for p in sorted(folder.iterdir())) or "nothing"
        raise DataError(
            f"{folder}: found {seen}; expected one .zip of pictures and one .csv of captions (or captions.txt,"
            " or the .csv inside the .zip)"
        )
    return Source(zips[0], tables[0] if tables else None)


def caption_files(source: Source, archive: Archive) -> list[int]:
    """Which members of the archive (by index) are captions files: none where one stands beside the archive.

    Raises:
        DataError: there is no captions file at all.
    """
    if source.captions:
        return []
    inside = [
        index
        for index, member in enumerate(archive.members())
        if member.name.lower().endswith(".csv") and "__MACOSX" not in member.name
    ]
    if not inside:
        raise DataError(f"{source.archive}: no .csv in it and none beside it; put the captions' .csv beside the .zip")
    return inside


def rows(source: Source, archive: Archive) -> Iterator[CaptionRow]:
    """Every row of every captions file, in order.

    Raises:
        DataError: a captions file can't be read or lacks a column; names the file and the row.
    """
    if source.captions:
        yield from _rows_of(source.captions.name, "", source.captions.read_bytes(), str(source.captions))
    members = archive.members()
    for index in caption_files(source, archive):
        name = members[index].name
        place = f"{source.archive}:{name}"
        try:
            data = archive.read(index, _CSV_BYTES)
        except MemberError as error:
            raise DataError(f"{place}: can't be read ({error.reason}); download or make the archive again") from None
        folder = str(PurePosixPath(name).parent)
        yield from _rows_of(name, "" if folder == "." else folder, data, place)


def _rows_of(file: str, folder: str, data: bytes, place: str) -> Iterator[CaptionRow]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{place}: line {line} is not UTF-8; save the file as UTF-8") from None
    csv.field_size_limit(_CSV_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    picture = caption = -1
    number = columns = 0
    try:
        for number, fields in enumerate(reader, start=1):
            if not any(field.strip() for field in fields):
                continue  # a blank line is no row
            if picture < 0:
                columns = len(fields)
                named = _columns(fields)
                if named:
                    picture, caption = named
                    continue
                if not _is_headerless(fields):
                    raise DataError(f"{place}: row 1: found the columns {', '.join(fields[:8])}; {_HINT}")
                picture, caption = 1, 2
            malformed = len(fields) <= max(picture, caption) or any(field.strip() for field in fields[columns:])
            yield CaptionRow(
                picture=None if malformed else fields[picture].strip(),
                caption=Row("" if malformed else fields[caption], file, number),
                folder=folder,
            )
    except csv.Error as error:
        raise DataError(f"{place}: row {number + 1}: {error}; correct the quotes of that row") from None
    if picture < 0:
        raise DataError(f"{place}: has no rows; {_HINT} and add a row for each caption")


def _columns(header: list[str]) -> tuple[int, int] | None:
    names = [name.strip().lower() for name in header]
    picture = next((names.index(name) for name in _PICTURE_COLUMNS if name in names), None)
    caption = next((names.index(name) for name in _CAPTION_COLUMNS if name in names), None)
    return None if picture is None or caption is None else (picture, caption)


def _is_headerless(fields: list[str]) -> bool:
    """Whether this first row is already data, as in Kaggle's second CSV: a number, a picture, a caption."""
    return len(fields) == 3 and fields[0].strip().isdigit() and bool(fields[1].strip())


class PictureIndex:
    """Finds the picture that a captions row names, among the pictures of an archive.

    A row may give the path from the archive's top or from the captions file's folder, the end of that path, or the
    bare file name; each with or without its suffix. A name that agrees to the letter goes before one that agrees
    but for upper and lower case. Letters with accents are the same however they are composed.
    """

    def __init__(self, pictures: dict[int, Member]) -> None:
        self._paths = {index: _normal(member.name) for index, member in pictures.items()}
        self._by_name: dict[str, set[int]] = {}
        for index, path in self._paths.items():
            name = path.rpartition("/")[2].casefold()
            for key in (name, _stem(name)):
                self._by_name.setdefault(key, set()).add(index)

    def find(self, picture: str, folder: str) -> set[int]:
        """The indices of the members that `picture` may mean: one, none, or several where it is ambiguous."""
        wanted = _normal(picture).removeprefix("./")
        candidates = self._by_name.get(wanted.rpartition("/")[2].casefold(), set())
        here = f"{_normal(folder)}/{wanted}" if folder else wanted
        for fold in (str, str.casefold):
            for whole in (here, wanted):
                if found := {i for i in candidates if fold(whole) in _both(fold(self._paths[i]))}:
                    return found
            end = f"/{fold(wanted)}"
            if found := {i for i in candidates if any(path.endswith(end) for path in _both(fold(self._paths[i])))}:
                return found
        return set()


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _both(path: str) -> tuple[str, str]:
    return path, _stem(path)
