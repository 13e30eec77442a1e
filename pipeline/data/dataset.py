"""The records that stages exchange: each is one type with one reader and one writer.

`IngestedPicture` goes from ingest to build (`data/ingest/<source>/records.jsonl`), `Example` from build to the later
stages (`data/dataset/<split>/captions.jsonl`). The pictures are stored beside the records in a few zip shards, because
DVC and file systems are slow with many small files.

Each shard of a split also contains its own lines as `metadata.jsonl`, so that
`datasets.load_dataset("imagefolder", data_dir="data/dataset")` reads the data set. (With a `metadata.jsonl` beside the
zip the pictures could not be opened: `datasets` looks for them in the folder of the metadata.)

This module imports nothing else of `pipeline.data`, so that changes there do not make training stale.
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
from pipeline.runtime.zip_member import read_member

SHARD_PICTURES = 1_000  # few files for DVC, and little to rewrite when a data set grows
_RECORDS = "records.jsonl"
_EXAMPLES = "captions.jsonl"
_WITHDRAWN = "withdrawn.jsonl"  # only of sources whose layout has such a thing
_METADATA = "metadata.jsonl"  # the file name that imagefolder expects


@dataclass(frozen=True)
class RawCaption:
    """A caption as written in its source: the text, and the file and row (a header is row 1) that it comes from."""

    text: str
    file: str
    row: int


@dataclass(frozen=True)
class Withdrawn:
    """A caption that people replaced or rejected: its picture loses it, whichever source it is from.

    Attributes:
        sha256: of the picture's raw bytes.
        text: the caption.
        file, row: where that was said.
    """

    sha256: str
    text: str
    file: str
    row: int


@dataclass(frozen=True)
class IngestedPicture:
    """A usable picture, with every caption that its source has for it.

    Attributes:
        sha256: SHA-256 of the raw bytes; the picture's identity.
        file_name: the normalised picture's name within the shards.
        origin: where it was found in its source: the archive and the name within.
        copies: where else in the source the same bytes were found.
        width, height: pixels of the normalised picture.
        phash: 64-bit perceptual hash, 16 hexadecimal digits.
        thumbnail: 8 x 8 RGB, row by row, 384 hexadecimal digits.
        split_by: the keys that determine its split: its own SHA-256 if a row shows it alone, and for each post of
            several pictures that shows it the SHA-256 of the post's first picture that can be read.
        splits: its splits in a source that has splits of its own (usually one); none in any other.
        captions: in the order of the source.
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
    splits: list[str]
    captions: list[RawCaption]


@dataclass(frozen=True)
class Example:
    """A picture of the data set and its captions.

    Attributes:
        file_name: the picture's name within the split's shards.
        captions: cleaned and distinct; at least one.
        sha256: SHA-256 of the raw bytes; the picture's identity.
        sources: the folders of `data/raw` that contain it.
        origins: where it was found in each source.
    """

    file_name: str
    captions: list[str]
    sha256: str
    sources: list[str]
    origins: list[str]


def fair_share(examples: Sequence[Example], most: int) -> list[Example]:
    """Return at most `most` of the examples, in their order.

    The ones with the lowest SHA-256 are chosen, so that no source or folder is preferred.
    """
    lowest = {example.sha256 for example in sorted(examples, key=lambda example: example.sha256)[:most]}
    return [example for example in examples if example.sha256 in lowest]


def write_ingested(folder: Path, records: Iterable[IngestedPicture]) -> None:
    """Write a source's records to `folder`."""
    # `dataclasses.asdict` makes deep copies, which takes seconds for many records.
    lines = (vars(record) | {"captions": [vars(caption) for caption in record.captions]} for record in records)
    write_json_lines(folder / _RECORDS, lines)


def read_ingested(folder: Path) -> Iterator[IngestedPicture]:
    """Yield a source's records from `folder`.

    Raises:
        DataError: the source has not been ingested.
    """
    if not (folder / _RECORDS).is_file():
        raise DataError(f"{folder / _RECORDS}: not found; run `dvc repro`, which ingests every source first")
    for value in read_json_lines(folder / _RECORDS):
        yield IngestedPicture(**{**value, "captions": [RawCaption(**caption) for caption in value["captions"]]})


def write_withdrawn(folder: Path, withdrawn: Iterable[Withdrawn]) -> None:
    """Write the captions that a source withdraws from pictures of other sources."""
    write_json_lines(folder / _WITHDRAWN, map(vars, withdrawn))


def read_withdrawn(folder: Path) -> list[Withdrawn] | None:
    """Return what `write_withdrawn` wrote; None if the source is not one of corrections."""
    file = folder / _WITHDRAWN
    return [Withdrawn(**value) for value in read_json_lines(file)] if file.is_file() else None


def write_split(
    folder: Path, examples: Iterable[Example], picture: Callable[[Example], PictureReader], last: Path
) -> None:
    """Write a split to `folder`: its examples and their pictures, in separate shards for each source.

    Args:
        folder: is created.
        examples: grouped by source.
        picture: returns the reader that has an example's picture.
        last: the folder of the last run, whose unchanged shards are reused.
    """
    lines = []
    for source, of_source in groupby(examples, key=lambda example: example.sources[0]):
        with PictureWriter(folder, PictureReader(last), f"{source}-") as writer:
            for example in of_source:
                lines.append(vars(example))
                writer.add(example.file_name, picture(example), lines[-1])
    write_json_lines(folder / _EXAMPLES, lines)


def read_examples(folder: Path) -> list[Example]:
    """Return a split's examples from `folder`.

    Raises:
        DataError: the split has not been built.
    """
    if not (folder / _EXAMPLES).is_file():
        raise DataError(f"{folder / _EXAMPLES}: not found; run `dvc repro`, which builds the data set first")
    return [Example(**value) for value in read_json_lines(folder / _EXAMPLES)]


class PictureWriter:
    """Writes pictures to the shards of a folder; equal pictures in equal order give equal bytes.

    A shard that has not changed since the last run is hard-linked (or copied, if the file system has no hard links)
    instead of written. So when pictures are appended to a data set, only the new ones cost time, and DVC does not hash
    the others again.
    """

    def __init__(self, folder: Path, last: PictureReader | None = None, prefix: str = "") -> None:
        """Write to `folder`; `last` reads the shards of the last run, and `prefix` starts the names of the new ones."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._last = last
        self._prefix = prefix
        self._shards = 0
        self._pictures: list[tuple[str, bytes | PictureReader]] = []  # of the current shard
        self._metadata: list[dict[str, Any]] = []

    def add(self, file_name: str, picture: bytes | PictureReader, metadata: dict[str, Any] | None = None) -> None:
        """Append a picture: its bytes, or the reader of a folder that has it under the same name.

        It is stored uncompressed, because JPEGs do not shrink in a zip. `metadata` becomes a line of the shard's
        `metadata.jsonl`.
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
    """A file in a shard: its name, and the CRC-32 and number of its bytes."""

    name: str
    crc: int
    size: int


class PictureReader:
    """Reads pictures from the shards of a folder. It can be pickled; each process opens the shards itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: tuple[dict[str, zipfile.ZipFile], dict[str, zipfile.ZipFile]] | None = None

    def read(self, file_name: str) -> bytes:
        """Return the bytes of a picture.

        Raises:
            DataError: no shard of the folder contains it, or the shard is damaged.
        """
        try:
            return read_member(self._pictures[file_name], file_name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise self._error(file_name, error) from None

    def names(self) -> set[str]:
        """Return the names of all pictures in the shards; the empty set if a shard is damaged."""
        try:
            return set(self._pictures)
        except zipfile.BadZipFile:
            return set()

    def entry(self, file_name: str) -> Entry:
        """Return the shard entry of a picture.

        Raises:
            DataError: as `read`.
        """
        try:
            info = self._pictures[file_name].getinfo(file_name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise self._error(file_name, error) from None
        return Entry(info.filename, info.CRC, info.file_size)

    def entries(self, shard: str) -> list[Entry]:
        """Return the entries of a shard (`pictures-0000.zip`) in order; none if it is missing or damaged."""
        try:
            file = self._open()[0].get(shard)
        except zipfile.BadZipFile:
            return []
        return [Entry(info.filename, info.CRC, info.file_size) for info in file.infolist()] if file else []

    def link(self, shard: str, target: Path) -> None:
        """Hard-link a shard to `target`; copy it if the file system has no hard links."""
        try:
            os.link(self._folder / shard, target)
        except OSError:
            shutil.copy2(self._folder / shard, target)

    @property
    def _pictures(self) -> dict[str, zipfile.ZipFile]:
        return self._open()[1]

    def _open(self) -> tuple[dict[str, zipfile.ZipFile], dict[str, zipfile.ZipFile]]:
        """Return the shards by file name, and by the names of the pictures in them."""
        if self._opened is None:
            shards = {path.name: zipfile.ZipFile(path) for path in sorted(self._folder.glob("pictures-*.zip"))}
            self._opened = shards, {name: shard for shard in shards.values() for name in shard.namelist()}
        return self._opened

    def _error(self, file_name: str, error: Exception) -> DataError:
        problem = "no picture" if isinstance(error, KeyError) else f"damaged ({error}): cannot read"
        return DataError(
            f"{self._folder}: {problem} {file_name} in pictures-*.zip; remove the folder and run `dvc repro`, which"
            " recreates it"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_opened": None}
