"""What flows between the stages: one type each, with its one reader and one writer.

`Ingested` goes from ingest to build (`data/ingest/<source>/records.jsonl`), `Example` from build to all that
follows (`data/dataset/<split>/captions.jsonl`). The pictures stand beside both in a few zip shards: many
thousand small files would cost DVC and the file system dearly.

The shards of a split hold the lines of their own pictures too, as `metadata.jsonl`: so
`datasets.load_dataset("imagefolder", data_dir="data/dataset")` reads the data set as it stands. (A
`metadata.jsonl` beside the zip would load as well, but its pictures could not be opened: `datasets` looks
for them in the metadata's own folder.)
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.config.errors import DataError
from pipeline.runtime.atomic_files import read_json_lines, write_json_lines

SHARD_PICTURES = 1_000  # few files for DVC, and little to write again where a data set grows
_RECORDS = "records.jsonl"
_EXAMPLES = "captions.jsonl"
_METADATA = "metadata.jsonl"  # the name that imagefolder looks for


@dataclass(frozen=True)
class Row:
    """A caption as it came: its text, and the file and row (the header is row 1) that it stands in."""

    text: str
    file: str
    row: int


@dataclass(frozen=True)
class Ingested:
    """A picture that ingest could use, with every caption that its source has for it.

    Attributes:
        sha256: of the raw bytes as they came; the picture's identity.
        file_name: of the normalised picture within the shards.
        origin: where it was found in its source: the archive and the name within.
        copies: where else the same bytes were found in it.
        width, height: pixels of the normalised picture.
        phash: 64-bit perceptual hash, 16 hexadecimal digits.
        thumbnail: 8 x 8 RGB, row by row, 384 hexadecimal digits.
        split_by: the SHA-256 that its split follows: its own; of a post with several pictures that of the first
            of them; several where it stands in several posts.
        captions: in the order in which they came.
    """

    sha256: str
    file_name: str
    origin: str
    copies: list[str]
    width: int
    height: int
    phash: str
    thumbnail: str
    split_by: list[str]
    captions: list[Row]


@dataclass(frozen=True)
class Example:
    """A picture of the data set and its captions.

    Attributes:
        file_name: of the picture within the split's shards.
        captions: cleaned, all different, at least one.
        sha256: of the raw bytes as they came; the picture's identity.
        sources: the folders of `data/raw` that it came from.
        origins: where it was found in each.
    """

    file_name: str
    captions: list[str]
    sha256: str
    sources: list[str]
    origins: list[str]


def fair_share(examples: Sequence[Example], most: int) -> list[Example]:
    """Of many pictures `most`, in their order: those of the lowest SHA-256, so that no source or folder comes first."""
    lowest = {example.sha256 for example in sorted(examples, key=lambda example: example.sha256)[:most]}
    return [example for example in examples if example.sha256 in lowest]


def write_ingested(folder: Path, records: Iterable[Ingested]) -> None:
    """Write a source's records into `folder`."""
    # `dataclasses.asdict` copies all that it finds, which takes seconds for many.
    lines = (vars(record) | {"captions": [vars(row) for row in record.captions]} for record in records)
    write_json_lines(folder / _RECORDS, lines)


def read_ingested(folder: Path) -> Iterator[Ingested]:
    """Read a source's records from `folder`.

    Raises:
        DataError: the source has not been ingested.
    """
    if not (folder / _RECORDS).is_file():
        raise DataError(f"{folder / _RECORDS}: not found; run `dvc repro`, which ingests every source first")
    for value in read_json_lines(folder / _RECORDS):
        yield Ingested(**{**value, "captions": [Row(**row) for row in value["captions"]]})


def write_split(
    folder: Path, examples: Iterable[Example], picture: Callable[[Example], PictureReader], last: Path
) -> None:
    """Write a split into `folder`: its examples, and their pictures, in shards of their own for each source.

    Args:
        folder: is made.
        examples: with those of one source together.
        picture: gives the reader that has an example's picture.
        last: where the split was written the last time; its shards are used again where they are the same.
    """
    lines = []
    for source, of_source in groupby(examples, key=lambda example: example.sources[0]):
        with PictureWriter(folder, PictureReader(last), f"{source}-") as writer:
            for example in of_source:
                lines.append(vars(example))
                writer.add(example.file_name, picture(example), lines[-1])
    write_json_lines(folder / _EXAMPLES, lines)


def read_examples(folder: Path) -> list[Example]:
    """Read a split's examples from `folder`.

    Raises:
        DataError: the split has not been built.
    """
    if not (folder / _EXAMPLES).is_file():
        raise DataError(f"{folder / _EXAMPLES}: not found; run `dvc repro`, which builds the data set first")
    return [Example(**value) for value in read_json_lines(folder / _EXAMPLES)]


class PictureWriter:
    """Writes pictures into the shards of a folder; equal pictures in equal order give equal bytes.

    A shard that would be what it was the last time is linked (copied, where the file system has no links) and not
    written again: so a data set that grows at its end costs what is new, and DVC need not hash the rest.
    """

    def __init__(self, folder: Path, last: PictureReader | None = None, prefix: str = "") -> None:
        """Write to `folder`; `last` has the last time's shards, and `prefix` begins the names of the new ones."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._last = last
        self._prefix = prefix
        self._shards = 0
        self._pictures: list[tuple[str, bytes | PictureReader]] = []  # of the shard that is being filled
        self._metadata: list[dict[str, Any]] = []

    def add(self, file_name: str, picture: bytes | PictureReader, metadata: dict[str, Any] | None = None) -> None:
        """Append a picture: its bytes, or the reader of a folder that has it under the same name.

        It is stored as it is: a JPEG does not get smaller in a zip. Where `metadata` is given, it becomes a line of
        the shard's `metadata.jsonl`.
        """
        self._pictures.append((file_name, picture))
        if metadata:
            self._metadata.append(metadata)
        if len(self._pictures) == SHARD_PICTURES:
            self._finish()

    def close(self) -> None:
        """Finish the last shard."""
        if self._pictures:
            self._finish()

    def _finish(self) -> None:
        name = f"pictures-{self._prefix}{self._shards:04d}.zip"
        members = self._pictures
        if self._metadata:
            lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in self._metadata)
            members = [*members, (_METADATA, lines.encode())]
        entries = [
            Entry(file, zlib.crc32(picture), len(picture)) if isinstance(picture, bytes) else picture.entry(file)
            for file, picture in members
        ]
        if self._last and self._last.entries(name) == entries:
            self._last.link(name, self._folder / name)
        else:
            with zipfile.ZipFile(self._folder / name, "w", zipfile.ZIP_STORED) as shard:
                for file, picture in members:
                    data = picture if isinstance(picture, bytes) else picture.read(file)
                    shard.writestr(zipfile.ZipInfo(file, date_time=(1980, 1, 1, 0, 0, 0)), data)
        self._shards += 1
        self._pictures, self._metadata = [], []

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


@dataclass(frozen=True)
class Entry:
    """What a shard's list of files says of one: its name, the CRC-32 of its bytes, and how many there are."""

    name: str
    crc: int
    size: int


class PictureReader:
    """Reads pictures out of the shards of a folder. It may be sent to another process, which opens them anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: tuple[dict[str, zipfile.ZipFile], dict[str, zipfile.ZipFile]] | None = None

    def read(self, file_name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            DataError: no shard of the folder has it, or the shard is damaged.
        """
        try:
            return self._pictures[file_name].read(file_name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise self._told(file_name, error) from None

    def names(self) -> set[str]:
        """The names of all pictures in the shards; none where a shard is damaged."""
        try:
            return set(self._pictures)
        except zipfile.BadZipFile:
            return set()

    def entry(self, file_name: str) -> Entry:
        """What the list of its shard says of a picture.

        Raises:
            DataError: as `read`.
        """
        try:
            info = self._pictures[file_name].getinfo(file_name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise self._told(file_name, error) from None
        return Entry(info.filename, info.CRC, info.file_size)

    def entries(self, shard: str) -> list[Entry]:
        """What a shard (`pictures-0000.zip`) lists, in its order; nothing where it is not there or damaged."""
        try:
            file = self._open()[0].get(shard)
        except zipfile.BadZipFile:
            return []
        return [Entry(info.filename, info.CRC, info.file_size) for info in file.infolist()] if file else []

    def link(self, shard: str, target: Path) -> None:
        """Let `target` be the shard too, without writing its bytes again where the file system can do that."""
        try:
            os.link(self._folder / shard, target)
        except OSError:
            shutil.copy2(self._folder / shard, target)

    @property
    def _pictures(self) -> dict[str, zipfile.ZipFile]:
        return self._open()[1]

    def _open(self) -> tuple[dict[str, zipfile.ZipFile], dict[str, zipfile.ZipFile]]:
        """The shards by their names, and by the names of the pictures in them."""
        if self._opened is None:
            shards = {path.name: zipfile.ZipFile(path) for path in sorted(self._folder.glob("pictures-*.zip"))}
            self._opened = shards, {name: shard for shard in shards.values() for name in shard.namelist()}
        return self._opened

    def _told(self, file_name: str, error: Exception) -> DataError:
        what = "no picture" if isinstance(error, KeyError) else f"damaged ({error}): can't read"
        return DataError(
            f"{self._folder}: {what} {file_name} in pictures-*.zip; remove the folder and run `dvc repro`, which makes"
            " it anew"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_opened": None}
