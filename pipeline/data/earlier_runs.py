"""What earlier runs of `ingest` made of a source: a picture with the same raw bytes is not decoded again.

Of a source in a bucket, an object that is listed as before is not even read again, and the pictures of a run that
stopped, because the store did not answer for example, are kept in `.work/ingest` for the next one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.data.dataset import IngestedPicture, PictureReader, read_ingested, write_ingested
from pipeline.data.images import Normalised
from pipeline.runtime.atomic_files import read_json, remove, swapped_in, write_json

_MADE_BY = "made_by.json"  # what the pictures in the folder depend on, beside the raw bytes
_STAMP, _SHA256 = 16, 32  # bytes


class _Run:
    """The pictures of a folder, if this run would produce the same from the same raw bytes."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self.records: dict[str, IngestedPicture] = {}
        self.pictures = PictureReader(folder)
        with suppress(DataError, ValueError):  # damaged files are recreated
            if (folder / _MADE_BY).is_file() and read_json(folder / _MADE_BY) == made_by:
                stored = self.pictures.names()
                self.records = {r.sha256: r for r in read_ingested(folder) if r.file_name in stored}


class EarlierRuns:
    """The pictures of the last good run of a source, and of a run that stopped after it.

    Attributes:
        last: reads the pictures of the last good run.

    Args:
        name: of the source.
        folder: the outputs of the last good run.
        made_by: what pictures depend on, beside the raw bytes.
    """

    def __init__(self, name: str, folder: Path, made_by: Mapping[str, Any]) -> None:
        self._made_by = made_by
        self._stopped = paths.STOPPED_INGESTS / name
        self._stamps_file = paths.STOPPED_INGESTS / f"{name}.stamps"
        self._runs = [_Run(folder, made_by), _Run(self._stopped, made_by)]
        self._stamps = self._read_stamps()
        self._new_stamps: dict[bytes, bytes] = {}
        self.last = self._runs[0].pictures

    def find(self, sha256: str) -> Normalised | None:
        """Return the picture with these raw bytes, without its JPEG (which `reader` has), or None."""
        for run in self._runs:
            if record := run.records.get(sha256):
                return Normalised(
                    jpeg=b"",
                    width=record.width,
                    height=record.height,
                    phash=int(record.phash, 16),
                    thumbnail=bytes.fromhex(record.thumbnail),
                )
        return None

    def reader(self, sha256: str) -> PictureReader:
        """Return the reader of the JPEG of a picture that `find` found."""
        return next(run.pictures for run in self._runs if sha256 in run.records)

    def sha256(self, stamp: bytes | None) -> str | None:
        """Return the SHA-256 of the bytes that were read under a stamp (see `Files.stamp`); None if there were none."""
        known = self._stamps.get(stamp) if stamp else None
        return known.hex() if known else None

    def note(self, stamp: bytes | None, sha256: str) -> None:
        """Remember the SHA-256 of what was read under a stamp, if it has one."""
        if stamp:
            self._new_stamps[stamp] = bytes.fromhex(sha256)

    def sign(self, folder: Path) -> None:
        """Write to the outputs what their pictures depend on."""
        write_json(folder / _MADE_BY, self._made_by)

    def finish(self) -> None:
        """After a good run, drop what only a stopped one left."""
        if self._new_stamps or self._stamps_file.exists():
            self._write_stamps(self._new_stamps)
        remove(self._stopped)

    def keep(self, folder: Path, records: Iterable[IngestedPicture]) -> None:
        """Keep the pictures of a run that stops, if they are more than those of the last one that did.

        Args:
            folder: with their shards, which is moved away.
            records: of the pictures.
        """
        records = list(records)
        self._write_stamps(self._stamps | self._new_stamps)
        if len(records) > len(self._runs[1].records):
            write_ingested(folder, records)
            self.sign(folder)
            remove(self._stopped)
            shutil.move(folder, self._stopped)

    def _read_stamps(self) -> dict[bytes, bytes]:
        with suppress(FileNotFoundError):
            data, step = self._stamps_file.read_bytes(), _STAMP + _SHA256
            starts = range(0, len(data) - step + 1, step)
            return {data[k : k + _STAMP]: data[k + _STAMP : k + step] for k in starts}
        return {}

    def _write_stamps(self, stamps: Mapping[bytes, bytes]) -> None:
        with swapped_in(self._stamps_file) as (place,), place.open("wb") as file:
            for stamp, sha256 in stamps.items():
                file.write(stamp + sha256)
