"""Ingest a source: data/raw/SOURCE (raw archives) -> data/ingest/SOURCE (checked pictures and records).

Every row and every file is accounted for: it is kept, or set aside with a reason. Pictures that the last run decoded
are not decoded again; they are found by the hash of their raw bytes.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.config.sections.ingest import Ingest
from pipeline.data import dataset, images
from pipeline.data.audit import Audit, write_set_aside
from pipeline.data.dataset import (
    IngestedPicture,
    PictureReader,
    PictureWriter,
    RawCaption,
    Withdrawn,
    read_ingested,
    write_ingested,
    write_withdrawn,
)
from pipeline.data.images import Normalised
from pipeline.data.sources.archive import Files, MemberError, open_files, suffix
from pipeline.data.sources.layout import CaptionRow
from pipeline.data.sources.layouts import find_captions_files, is_resource_fork, read_captions
from pipeline.data.sources.picture_index import PictureIndex
from pipeline.data.text import clean
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, sha256_of, swapped_in, write_json
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.runtime.progress import progress_bar

_MAX_PICTURE_BYTES = 256 * 2**20  # per file; no photo is this large
_MADE_BY = "made_by.json"  # what the pictures in the folder depend on, beside the raw bytes
_UNSUPPORTED = {".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".cr2", ".nef", ".arw", ".dng"}
_VIDEOS = {".mp4", ".mov", ".m4v", ".webm", ".avi", ".mkv"}

T = TypeVar("T")
R = TypeVar("R")


def run(params: Params, args: argparse.Namespace) -> str:
    """Ingest one source; return the last line to print."""
    name, settings = args.source, params.ingest
    if name not in settings.sources:  # this also rejects a name like ../x, which would leave the folder
        raise ConfigError(
            f"params.yaml: ingest.sources: has no {name!r}, only {', '.join(settings.sources)}; add it there"
        )
    folder, report = paths.INGEST / name, paths.INGEST_REPORTS / f"{name}.json"
    with open_files(paths.RAW / name) as files, swapped_in(folder, report) as (new_folder, new_report):
        audit = Audit()
        source = _Source(name, files, audit)
        captions_files = source.read_captions()
        records = source.ingest_pictures(
            new_folder, settings, _LastRun(folder, settings), params.runtime.decode_threads, params.runtime.memory_gb
        )
        if not (records or source.may_be_empty):
            reasons = audit.reasons("file") + audit.reasons("row")
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            raise DataError(
                f"{files.folder}: contains no picture with a caption ({counts}); check that the captions name the"
                " picture files"
            )
        audit.check_share(str(files.folder), settings.max_set_aside)
        write_ingested(new_folder, records)
        if source.withdrawn is not None:
            write_withdrawn(new_folder, source.withdrawn)
        write_json(new_folder / _MADE_BY, _made_by(settings))
        write_set_aside(new_folder / "set_aside.csv", audit.set_aside)
        write_json(new_report, {**audit.report(), "captions_files": captions_files})
    return (
        f"{audit.pictures:,} pictures with {audit.captions:,} captions in {folder}; set aside"
        f" {audit.reasons('file').total():,} files and {audit.reasons('row').total():,} rows"
        f" (counts: {report}; list: {folder / 'set_aside.csv'})"
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
    """The pictures of this source's last run, if this run would produce the same from the same raw bytes.

    Attributes:
        pictures: reads the last run's pictures.
    """

    def __init__(self, folder: Path, settings: Ingest) -> None:
        self._records: dict[str, IngestedPicture] = {}
        self.pictures = PictureReader(folder)
        if (folder / _MADE_BY).is_file() and read_json(folder / _MADE_BY) == _made_by(settings):
            with suppress(DataError, ValueError):  # damaged files are recreated
                stored = self.pictures.names()
                self._records = {r.sha256: r for r in read_ingested(folder) if r.file_name in stored}

    def find(self, sha256: str) -> Normalised | None:
        """Return the picture with these raw bytes, without its JPEG (which `pictures` has); None if there is none."""
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


class _Memory:
    """The memory budget of ingest. Files and decoded pictures have a share each, because a thread that holds a file
    waits for its picture.

    Attributes:
        files: for the bytes of files.
        pictures: for decoded pictures.
    """

    def __init__(self, total: int) -> None:
        return_large_blocks()
        self.files = MemoryBudget(total // 4)
        self.pictures = MemoryBudget(total * 5 // 8)  # the rest is for what libraries and the allocator keep


class _Decoded(NamedTuple):
    """The result of reading one member.

    Attributes:
        sha256: of the member's bytes; None if they cannot be read.
        result: the picture, the reason why it cannot be used, or None if no caption names the member.
    """

    sha256: str | None
    result: Normalised | str | None


@dataclass(frozen=True)
class _Group:
    """The members of a source that have the same bytes: one picture.

    Attributes:
        members: indices, in order.
        first: the first member with a caption; the first of all if none has one.
        result: the picture, or the reason why it cannot be used.
    """

    members: list[int]
    first: int
    result: Normalised | str


class _Source:
    """A source that is being ingested: its files, the captions of each picture, and the audit of both."""

    def __init__(self, name: str, files: Files, audit: Audit) -> None:
        self.name = name
        self.files = files
        self.audit = audit
        self.may_be_empty = False
        self.withdrawn: list[Withdrawn] | None = None
        self._captions: dict[int, list[RawCaption]] = {}  # index of every picture file -> its captions
        self._leads: dict[int, set[int]] = {}  # index -> the first pictures of the posts that show it

    def read_captions(self) -> list[dict[str, object]]:
        """Sort the files by name and read the captions of each picture; return a summary per captions file."""
        members = self.files.members
        layouts = find_captions_files(self.files)
        self.audit.files, self.audit.captions_files = len(members), len(layouts)
        for index, member in enumerate(members):
            if is_resource_fork(member):
                self._set_aside(index, "not_a_picture_file")
            elif member.suffix in images.SUFFIXES:
                self._captions[index] = []
            elif index not in layouts:
                kind = "unsupported_format" if member.suffix in _UNSUPPORTED else "not_a_picture_file"
                self._set_aside(index, member.refused or kind)
        # A row names the file that exists under that name once the archive is unpacked.
        by_name = PictureIndex({i: members[i] for i in self._captions if members[i].refused != "duplicate_name"})
        summaries = []
        for index, layout in layouts.items():
            captions = read_captions(self.files, index, layout)
            rows = self._assign(captions.rows, by_name)
            self.may_be_empty |= layout.may_be_empty
            if captions.withdrawn is not None:
                self.withdrawn = [*(self.withdrawn or ()), *captions.withdrawn]
            summaries.append(
                {"file": members[index].place, "layout": layout.name, "encoding": captions.encoding, "rows": rows}
            )
        return summaries

    def _assign(self, rows: Iterable[CaptionRow], by_name: PictureIndex) -> int:
        """Assign each caption to its picture, or set the row aside; return the number of rows."""
        before = self.audit.rows
        leads: dict[int, int] = {}  # post -> its first picture
        for row in rows:
            self.audit.rows += 1
            matches = by_name.find(row.picture, row.folder) if row.picture else set()
            index = min(matches, default=-1)
            reason = None
            if row.set_aside:
                reason = row.set_aside
            elif row.picture is None:
                reason = "malformed"
            elif not clean(row.caption.text):
                reason = "empty"
            elif len(matches) != 1:
                missing = "video" if suffix(row.picture) in _VIDEOS else "picture_missing"
                reason = "picture_ambiguous" if matches else missing
            if reason:
                self.audit.set_aside_row(self.name, row.caption.file, row.caption.row, reason)
            else:
                self._captions[index].append(row.caption)
                lead = index if row.post is None else leads.setdefault(row.post, index)
                self._leads.setdefault(index, set()).add(lead)
        return self.audit.rows - before

    def ingest_pictures(
        self, folder: Path, settings: Ingest, last: _LastRun, threads: int, memory_gb: float
    ) -> list[IngestedPicture]:
        """Decode, check and store each picture that has a caption; return the records in order.

        Members with the same bytes become one picture with the captions of all.
        """
        sha256s: dict[int, str] = {}
        same_bytes: dict[str, list[int]] = {}  # SHA-256 -> the members that have these bytes
        results: dict[str, tuple[int, Normalised | str]] = {}  # SHA-256 -> first member with a caption, and its result
        memory = _Memory(bytes_of(memory_gb))
        decoded = _parallel_map(lambda index: self._decode(index, settings, last, memory), self._captions, threads)
        with PictureWriter(folder, last.pictures) as writer:
            for index, (sha256, result) in progress_bar(
                zip(self._captions, decoded, strict=True),
                total=len(self._captions),
                desc=f"ingest {self.name}",
                unit=" pictures",
            ):
                if sha256 is None:
                    assert isinstance(result, str)
                    self._set_aside(index, result)
                    continue
                sha256s[index] = sha256
                same_bytes.setdefault(sha256, []).append(index)
                if result is None or sha256 in results:
                    continue
                if isinstance(result, Normalised):
                    writer.add(f"{sha256}.jpg", result.jpeg or last.pictures)
                    result = result.without_jpeg() if result.jpeg else result
                results[sha256] = index, result
        unused = "corrections_undone" if self.may_be_empty else "no_caption"
        records = []
        for sha256, members in same_bytes.items():
            group = _Group(members, *results.get(sha256, (members[0], unused)))
            self._set_aside_members(group)
            if isinstance(group.result, Normalised):
                records.append(self._record(sha256, group, group.result, sha256s))
        self.audit.pictures = len(records)
        self.audit.captions = sum(len(record.captions) for record in records)
        return records

    def _decode(self, index: int, settings: Ingest, last: _LastRun, memory: _Memory) -> _Decoded:
        # Reading joins pieces, so it takes the size twice.
        with memory.files.reserve(2 * min(self.files.size(index), _MAX_PICTURE_BYTES)):
            return self._decode_one(index, settings, last, memory.pictures)

    def _decode_one(self, index: int, settings: Ingest, last: _LastRun, budget: MemoryBudget) -> _Decoded:
        try:
            data = self.files.read(index, _MAX_PICTURE_BYTES)
        except MemberError as error:
            return _Decoded(None, error.reason)
        sha256 = images.identity(data)
        if not self._captions[index]:
            return _Decoded(sha256, None)
        try:
            picture = last.find(sha256) or images.normalise(data, settings.image_size, settings.max_pixels, budget)
        except images.PictureError as error:
            return _Decoded(sha256, error.reason)
        return _Decoded(sha256, picture)

    def _set_aside_members(self, group: _Group) -> None:
        """Set aside a group that cannot be used, or all but the first member of one that can."""
        for index in group.members:
            if isinstance(group.result, str):
                self._set_aside(index, group.result)
            elif index != group.first:
                self.audit.set_aside_file(self.name, self.files.members[index].place, "same_bytes")

    def _record(self, sha256: str, group: _Group, picture: Normalised, sha256s: Mapping[int, str]) -> IngestedPicture:
        leads = {lead for index in group.members for lead in self._leads.get(index, ())}
        return IngestedPicture(
            sha256=sha256,
            file_name=f"{sha256}.jpg",
            origin=self.files.members[group.first].place,
            copies=[self.files.members[index].place for index in group.members if index != group.first],
            width=picture.width,
            height=picture.height,
            phash=f"{picture.phash:016x}",
            thumbnail=picture.thumbnail.hex(),
            # If the first picture of a post cannot be read, the split follows the picture itself.
            split_by=sorted({sha256s.get(lead, sha256) for lead in leads}),
            captions=[caption for index in group.members for caption in self._captions[index]],
        )

    def _set_aside(self, index: int, reason: str) -> None:
        """Set aside a file and the rows that name it."""
        self.audit.set_aside_file(self.name, self.files.members[index].place, reason)
        for caption in self._captions.get(index, ()):
            self.audit.set_aside_row(self.name, caption.file, caption.row, "picture_set_aside")


def _parallel_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` with threads (Pillow releases the GIL while decoding); results keep the order of the items.

    Unlike `Executor.map` it reads only a few items ahead, so that an archive of any size fits in memory.
    """
    workers = threads or (os.cpu_count() or 1) + 1  # one more than cores, because one usually waits for the GIL
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the name of a folder in data/raw")


if __name__ == "__main__":
    entrypoint.main("ingest", run, _arguments, lock=lambda args: f"ingest-{args.source}")
