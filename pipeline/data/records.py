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
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json_lines, write_json_lines

SHARD_PICTURES = 10_000
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


def write_ingested(folder: Path, records: Iterable[Ingested]) -> None:
    """Write a source's records into `folder`."""
    write_json_lines(folder / _RECORDS, (asdict(record) for record in records))


def read_ingested(folder: Path) -> Iterator[Ingested]:
    """Read a source's records from `folder`.

    Raises:
        DataError: the source has not been ingested.
    """
    if not (folder / _RECORDS).is_file():
        raise DataError(f"{folder / _RECORDS}: not found; run `dvc repro`, which ingests every source first")
    for value in read_json_lines(folder / _RECORDS):
        yield Ingested(**{**value, "captions": [Row(**row) for row in value["captions"]]})


def write_split(folder: Path, examples: Iterable[Example], picture: Callable[[Example], bytes]) -> None:
    """Write a split into `folder`: its examples, and the pictures that `picture` gives for them."""
    lines = []
    with PictureWriter(folder) as writer:
        for example in examples:
            lines.append(asdict(example))
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
    """Writes pictures into the shards of a folder; equal pictures in equal order give equal bytes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._count = 0
        self._zip: zipfile.ZipFile | None = None
        self._metadata: list[dict[str, Any]] = []

    def add(self, file_name: str, data: bytes, metadata: dict[str, Any] | None = None) -> None:
        """Append a picture, stored as it is: a JPEG does not get smaller in a zip.

        Where `metadata` is given, it becomes a line of the shard's `metadata.jsonl`.
        """
        if self._count % SHARD_PICTURES == 0:
            self.close()
            shard = self._folder / f"pictures-{self._count // SHARD_PICTURES:04d}.zip"
            self._zip = zipfile.ZipFile(shard, "w", zipfile.ZIP_STORED)
        self._store(file_name, data)
        if metadata:
            self._metadata.append(metadata)
        self._count += 1

    def close(self) -> None:
        """Finish the last shard."""
        if self._zip is None:
            return
        if self._metadata:
            lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in self._metadata)
            self._store(_METADATA, lines.encode())
            self._metadata = []
        self._zip.close()
        self._zip = None

    def _store(self, name: str, data: bytes) -> None:
        assert self._zip is not None
        self._zip.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PictureReader:
    """Reads pictures out of the shards of a folder. It may be sent to another process, which opens them anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[str, zipfile.ZipFile] | None = None

    def read(self, file_name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            DataError: no shard of the folder has it, or the shard is damaged.
        """
        try:
            if self._shards is None:
                opened = [zipfile.ZipFile(path) for path in sorted(self._folder.glob("pictures-*.zip"))]
                self._shards = {name: shard for shard in opened for name in shard.namelist()}
            return self._shards[file_name].read(file_name)
        except (KeyError, zipfile.BadZipFile) as error:
            what = "no picture" if isinstance(error, KeyError) else f"damaged ({error}): can't read"
            raise DataError(
                f"{self._folder}: {what} {file_name} in pictures-*.zip; run `dvc repro -f` to make it anew"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_shards": None}
