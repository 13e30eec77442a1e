"""Ingest a source: data/raw/SOURCE (a stranger's archive) -> data/ingest/SOURCE (checked pictures, records).

Every row and every file is accounted for: kept, or set aside with its reason. A picture that the last run
decoded is not decoded again: it is found by the hash of its raw bytes.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.config.sections.ingest import Ingest
from pipeline.data import dataset, images
from pipeline.data.audit import Account, write_set_aside
from pipeline.data.dataset import Ingested, PictureReader, PictureWriter, Row, read_ingested, write_ingested
from pipeline.data.images import Normalised
from pipeline.data.sources.archive import Files, MemberError, open_files, suffix
from pipeline.data.sources.layouts import CaptionFile, PictureIndex, caption_files, is_resource_fork, read_captions
from pipeline.data.text import clean
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, sha256_of, swapped_in, write_json
from pipeline.runtime.progress import progress_bar

PICTURE_BYTES = 256 * 2**20  # of one file; no photo comes near
_MADE_BY = "made_by.json"  # what, beside the raw bytes, the pictures in the folder follow from
_UNSUPPORTED = {".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".cr2", ".nef", ".arw", ".dng"}
_VIDEOS = {".mp4", ".mov", ".m4v", ".webm", ".avi", ".mkv"}

T = TypeVar("T")
R = TypeVar("R")


def run(params: Params, args: argparse.Namespace) -> str:
    """Ingest one source; returns the last line to print."""
    name, settings = args.source, params.ingest
    if name not in settings.sources:  # also keeps a name like ../x from leading out of the folder
        raise ConfigError(
            f"params.yaml: ingest.sources: has no {name!r}, only {', '.join(settings.sources)}; add it there"
        )
    folder, report = paths.INGEST / name, paths.INGEST_REPORTS / f"{name}.json"
    with open_files(paths.RAW / name) as files, swapped_in(folder, report) as (new_folder, new_report):
        source = _Source(name, files, Account())
        tables = source.find_captions()
        found = source.ingest_pictures(new_folder, settings, _LastRun(folder, settings), params.runtime.decode_threads)
        account = source.account
        if not found:
            reasons = account.reasons("file") + account.reasons("row")
            seen = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            raise DataError(f"{files.folder}: no picture with a caption in it ({seen}); check that the names agree")
        account.check_share(str(files.folder), settings.max_set_aside)
        write_ingested(new_folder, found)
        write_json(new_folder / _MADE_BY, _made_by(settings))
        write_set_aside(new_folder / "set_aside.csv", account.aside)
        write_json(new_report, {**account.report(), "captions_files": tables})
    return (
        f"{account.pictures:,} pictures with {account.captions:,} captions in {folder}; set aside"
        f" {account.reasons('file').total():,} files and {account.reasons('row').total():,} rows"
        f" (reasons: {report}; each one: {folder / 'set_aside.csv'})"
    )


def _made_by(settings: Ingest) -> dict[str, Any]:
    return {
        "image_size": settings.image_size,
        "max_pixels": settings.max_pixels,
        "code": sha256_of(Path(images.__file__), Path(dataset.__file__)),
        "pillow": version("pillow"),
        "imagehash": version("imagehash"),
    }


class _LastRun:
    """The pictures that the last run of this source made, if this run would make the same of the same bytes."""

    def __init__(self, folder: Path, settings: Ingest) -> None:
        self._records: dict[str, Ingested] = {}
        self.pictures = PictureReader(folder)
        if (folder / _MADE_BY).is_file() and read_json(folder / _MADE_BY) == _made_by(settings):
            with suppress(DataError, ValueError):  # what is damaged is made anew
                there = self.pictures.names()
                self._records = {r.sha256: r for r in read_ingested(folder) if r.file_name in there}

    def find(self, sha256: str) -> Normalised | None:
        """What was made of the picture with these raw bytes, if it is there; `pictures` has its JPEG."""
        record = self._records.get(sha256)
        if record is None:
            return None
        return Normalised(
            jpeg=b"",
            width=record.width,
            height=record.height,
            phash=int(record.phash, 16),
            thumbnail=bytes.fromhex(record.thumbnail),
        )


class _Source:
    """A source on its way in: its files, its captions by picture, and the account of both."""

    def __init__(self, name: str, files: Files, account: Account) -> None:
        self.name = name
        self.files = files
        self.account = account
        self._captions: dict[int, list[Row]] = {}  # the pictures by name: index -> its captions
        self._leads: dict[int, set[int]] = {}  # index -> the first pictures of the posts that show it

    def find_captions(self) -> list[dict[str, object]]:
        """Sort the files by their names and give each picture its captions; returns what was read, for the report."""
        layouts = caption_files(self.files)
        self.account.files, self.account.caption_files = len(self.files.members), len(layouts)
        for index, member in enumerate(self.files.members):
            if is_resource_fork(member):
                self._set_aside(index, "not_a_picture_file")
            elif member.suffix in images.SUFFIXES:
                self._captions[index] = []
            elif index not in layouts:
                kind = "unsupported_format" if member.suffix in _UNSUPPORTED else "not_a_picture_file"
                self._set_aside(index, member.refused or kind)
        members = self.files.members
        # A row means the file that an unpacked archive would have under that name.
        by_name = PictureIndex({i: members[i] for i in self._captions if members[i].refused != "duplicate_name"})
        return [self._read(read_captions(self.files, i, layout), by_name) for i, layout in layouts.items()]

    def _read(self, file: CaptionFile, by_name: PictureIndex) -> dict[str, object]:
        before = self.account.rows
        leads: dict[int, int] = {}
        for row in file.rows:
            self.account.rows += 1
            found = by_name.find(row.picture, row.folder) if row.picture else set()
            index = min(found, default=-1)
            reason = None
            if row.picture is None:
                reason = "malformed"
            elif not clean(row.caption.text):
                reason = "empty"
            elif len(found) != 1:
                video = suffix(row.picture) in _VIDEOS
                reason = "picture_ambiguous" if found else "video" if video else "picture_missing"
            if reason:
                self.account.set_aside_row(self.name, row.caption.file, row.caption.row, reason)
            else:
                self._captions[index].append(row.caption)
                lead = index if row.post is None else leads.setdefault(row.post, index)
                self._leads.setdefault(index, set()).add(lead)
        return {
            "file": file.place,
            "layout": file.layout,
            "encoding": file.encoding,
            "rows": self.account.rows - before,
        }

    def ingest_pictures(self, folder: Path, settings: Ingest, last: _LastRun, threads: int) -> list[Ingested]:
        """Decode, check and store each picture that has a caption, once; returns their records in order.

        Members with the same bytes are one picture, with the captions of all.
        """

        def normalise(index: int) -> tuple[str | None, Normalised | str | None]:
            """The SHA-256 of a member's bytes and what was made of it: a picture, a reason, None without a caption."""
            try:
                data = self.files.read(index, PICTURE_BYTES)
            except MemberError as error:
                return None, error.reason
            sha256 = images.identity(data)
            if not self._captions[index]:
                return sha256, None
            try:
                return sha256, last.find(sha256) or images.normalise(data, settings.image_size, settings.max_pixels)
            except images.PictureError as error:
                return sha256, error.reason

        hashes: dict[int, str] = {}
        same: dict[str, list[int]] = {}  # SHA-256 -> the members that have these bytes
        outcome: dict[str, tuple[int, Normalised | str]] = {}  # SHA-256 -> the first that has a caption, and what of it
        with PictureWriter(folder, last.pictures) as writer:
            made = zip(self._captions, _map(normalise, self._captions, threads), strict=True)
            for index, (sha256, result) in progress_bar(
                made, total=len(self._captions), desc=f"ingest {self.name}", unit=" pictures"
            ):
                if sha256 is None:
                    assert isinstance(result, str)
                    self._set_aside(index, result)
                    continue
                hashes[index] = sha256
                same.setdefault(sha256, []).append(index)
                if result is None or sha256 in outcome:
                    continue
                if isinstance(result, Normalised):
                    writer.add(f"{sha256}.jpg", result.jpeg or last.pictures)
                    result = result.without_jpeg() if result.jpeg else result
                outcome[sha256] = index, result

        ingested = []
        for sha256, members in same.items():
            first, result = outcome.get(sha256, (members[0], "no_caption"))
            for index in members:
                if isinstance(result, str):
                    self._set_aside(index, result)
                elif index != first:
                    self.account.set_aside_file(self.name, self.files.members[index].place, "same_bytes")
            if isinstance(result, Normalised):
                leads = {lead for index in members for lead in self._leads.get(index, ())}
                ingested.append(
                    Ingested(
                        sha256=sha256,
                        file_name=f"{sha256}.jpg",
                        origin=self.files.members[first].place,
                        copies=[self.files.members[index].place for index in members if index != first],
                        width=result.width,
                        height=result.height,
                        phash=f"{result.phash:016x}",
                        thumbnail=result.thumbnail.hex(),
                        # A post whose first picture can't be read follows the picture itself.
                        split_by=sorted({hashes.get(lead, sha256) for lead in leads}),
                        captions=[row for index in members for row in self._captions[index]],
                    )
                )
        self.account.pictures = len(ingested)
        self.account.captions = sum(len(record.captions) for record in ingested)
        return ingested

    def _set_aside(self, index: int, reason: str) -> None:
        """Set aside a file and the rows that name it."""
        self.account.set_aside_file(self.name, self.files.members[index].place, reason)
        for row in self._captions.get(index, ()):
            self.account.set_aside_row(self.name, row.file, row.row, "picture_set_aside")


def _map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` on threads (Pillow releases the GIL while it decodes), results in order.

    Unlike `Executor.map` it reads only a few items ahead, so that an archive of any size fits in memory.
    """
    workers = threads or (os.cpu_count() or 1) + 1  # one more than cores: one of them waits for the GIL
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the name of a folder in data/raw")


if __name__ == "__main__":
    entrypoint.main("ingest", run, _arguments, lock=lambda args: f"ingest-{args.source}")
