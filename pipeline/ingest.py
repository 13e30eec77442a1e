"""Ingest a source: data/raw/SOURCE (raw archives) -> data/ingest/SOURCE (checked pictures and records).

Every row and every file is accounted for: it is kept, or set aside with a reason. Pictures that the last run decoded
are not decoded again; they are found by the hash of their raw bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
    read_ingested,
    write_ingested,
    write_withdrawn,
)
from pipeline.data.images import Normalised
from pipeline.data.normalising import Normaliser
from pipeline.data.sources.archive import Files, open_files
from pipeline.data.sources.delimited import Columns
from pipeline.data.sources.matching import MatchedCaptions
from pipeline.data.sources.member import MemberError
from pipeline.engine.base import Engine, Read
from pipeline.engine.choice import open_engine
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, sha256_of, swapped_in, write_json
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of
from pipeline.runtime.progress import progress_bar

_MAX_PICTURE_BYTES = 256 * 2**20  # per file; no photo is this large
_MADE_BY = "made_by.json"  # what the pictures in the folder depend on, beside the raw bytes


def run(params: Params, args: argparse.Namespace) -> str:
    """Ingest one source; return the last line to print."""
    name, settings = args.source, params.ingest
    if name not in settings.sources:  # this also rejects a name like ../x, which would leave the folder
        raise ConfigError(
            f"params.yaml: ingest.sources: has no {name!r}, only {', '.join(settings.sources)}; add it there"
        )
    folder, report = paths.INGEST / name, paths.INGEST_REPORTS / f"{name}.json"
    with (
        open_engine(params.runtime) as engine,
        open_files(paths.RAW / name) as files,
        swapped_in(folder, report) as (new_folder, new_report),
    ):
        audit = Audit()
        matched = MatchedCaptions(name, files, audit, Columns(settings.columns.picture, settings.columns.caption))
        records = _Source(name, files, matched, audit).ingest_pictures(
            new_folder, settings, _LastRun(folder, settings), engine, bytes_of(params.runtime.memory_gb)
        )
        with audit.listed_if_stopped(name):
            if not (records or matched.may_be_empty):
                reasons = audit.reasons("file") + audit.reasons("row")
                counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
                raise DataError(
                    f"{files.folder}: contains no picture with a caption ({counts}{matched.example()}); check that the"
                    " captions name the picture files"
                )
            audit.check_share(str(files.folder), settings.max_set_aside, matched.example())
        write_ingested(new_folder, records)
        if matched.withdrawn is not None:
            write_withdrawn(new_folder, matched.withdrawn)
        write_json(new_folder / _MADE_BY, _made_by(settings))
        write_set_aside(new_folder / "set_aside.csv", audit.set_aside)
        write_json(
            new_report,
            {**audit.report(), "captions_files": matched.files_read, "foreign_paths": matched.foreign_paths},
        )
    if matched.foreign_paths:
        print(
            f"ingest: {name}: {matched.foreign_paths:,} rows name paths of another machine, or URLs; their pictures"
            " were found by the end of the path"
        )
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
        "pillow-heif": version("pillow-heif"),
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
        """Return the picture with these raw bytes, without its JPEG (which `pictures` has), or None."""
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


class _Member(NamedTuple):
    """A member that has been read.

    Attributes:
        number: the member's index.
        sha256: of its bytes; None if they cannot be read.
        known: the last run's picture, the reason why the member cannot be read, or None.
    """

    number: int
    sha256: str | None
    known: Normalised | str | None


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

    def __init__(self, name: str, files: Files, matched: MatchedCaptions, audit: Audit) -> None:
        self.name = name
        self.files = files
        self.matched = matched
        self.audit = audit

    def ingest_pictures(
        self, folder: Path, settings: Ingest, last: _LastRun, engine: Engine, memory: int
    ) -> list[IngestedPicture]:
        """Decode, check and store each picture that has a caption; return the records in order.

        Members with the same bytes become one picture with the captions of all.

        Args:
            folder: for the pictures.
            settings: the params of this stage.
            last: the last run's pictures.
            engine: where pictures are decoded.
            memory: bytes that files and decoded pictures may take, in each process.
        """
        sha256s: dict[int, str] = {}
        same_bytes: dict[str, list[int]] = {}  # SHA-256 -> the members that have these bytes
        results: dict[str, tuple[int, Normalised | str]] = {}  # SHA-256 -> first member with a caption, and its result
        # Files and decoded pictures have a share each, because a thread that holds a file waits for its picture. The
        # rest is for what libraries and the allocator keep.
        files = MemoryBudget(memory // 4)
        normaliser = Normaliser(settings.image_size, settings.max_pixels, memory * 5 // 8)
        decoded = engine.map(lambda index: self._read(index, last, files), normaliser, self.matched.captions)
        with PictureWriter(folder, last.pictures) as writer:
            for (index, sha256, known), new in progress_bar(
                decoded, total=len(self.matched.captions), desc=f"ingest {self.name}", unit=" pictures"
            ):
                result = new or known
                if sha256 is None:
                    assert isinstance(result, str)
                    self.matched.set_aside(index, result)
                    continue
                sha256s[index] = sha256
                same_bytes.setdefault(sha256, []).append(index)
                if result is None or sha256 in results:
                    continue
                if isinstance(result, Normalised):
                    result = self._stored(sha256, result, settings.min_side, writer, last)
                results[sha256] = index, result
        return self._records(same_bytes, results, sha256s)

    @contextmanager
    def _read(self, index: int, last: _LastRun, budget: MemoryBudget) -> Iterator[Read[_Member]]:
        """Read a member, whose bytes need work if it has a caption and the last run does not know it."""
        # Reading joins pieces, so it takes the size twice.
        with budget.reserve(2 * min(self.files.size(index), _MAX_PICTURE_BYTES)):
            try:
                data = self.files.read(index, _MAX_PICTURE_BYTES)
            except MemberError as error:
                yield Read(_Member(index, None, error.reason), None)
                return
            sha256 = images.identity(data)
            known = last.find(sha256) if self.matched.captions[index] else None
            is_new = known is None and bool(self.matched.captions[index])
            yield Read(_Member(index, sha256, known), data if is_new else None)

    @staticmethod
    def _stored(
        sha256: str, picture: Normalised, min_side: int, writer: PictureWriter, last: _LastRun
    ) -> Normalised | str:
        """Store a picture; return it without its JPEG, or the reason why it is not stored."""
        # Only larger pictures are reduced, and never below this.
        if min(picture.width, picture.height) < min_side:
            return "too_small"
        writer.add(f"{sha256}.jpg", picture.jpeg or last.pictures)
        return picture.without_jpeg() if picture.jpeg else picture

    def _records(
        self,
        same_bytes: Mapping[str, list[int]],
        results: Mapping[str, tuple[int, Normalised | str]],
        sha256s: Mapping[int, str],
    ) -> list[IngestedPicture]:
        """Return the record of each usable picture, and set aside the members that do not become one."""
        unused = "corrections_undone" if self.matched.may_be_empty else "no_caption"
        records = []
        for sha256, members in same_bytes.items():
            group = _Group(members, *results.get(sha256, (members[0], unused)))
            self._set_aside_members(group)
            if isinstance(group.result, Normalised):
                records.append(self._record(sha256, group, group.result, sha256s))
        self.audit.pictures = len(records)
        self.audit.captions = sum(len(record.captions) for record in records)
        return records

    def _set_aside_members(self, group: _Group) -> None:
        """Set aside a group that cannot be used, or all but the first member of one that can."""
        for index in group.members:
            if isinstance(group.result, str):
                self.matched.set_aside(index, group.result)
            elif index != group.first:
                self.audit.set_aside_file(self.name, self.files.members[index].place, "same_bytes")

    def _record(self, sha256: str, group: _Group, picture: Normalised, sha256s: Mapping[int, str]) -> IngestedPicture:
        posts = [post for index in group.members for post in self.matched.posts.get(index, ())]
        # A post's first picture may be missing or unreadable; the next one is the same for all pictures of the post.
        split_by = {next(sha256s[index] for index in post if index in sha256s) for post in posts}
        if not self.matched.alone.isdisjoint(group.members):
            split_by.add(sha256)
        return IngestedPicture(
            sha256=sha256,
            file_name=f"{sha256}.jpg",
            origin=self.files.members[group.first].place,
            copies=[self.files.members[index].place for index in group.members if index != group.first],
            width=picture.width,
            height=picture.height,
            phash=f"{picture.phash:016x}",
            thumbnail=picture.thumbnail.hex(),
            split_by=sorted(split_by),
            splits=sorted({split for index in group.members for split in self.matched.splits.get(index, ())}),
            captions=[caption for index in group.members for caption in self.matched.captions[index]],
        )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the name of a folder in data/raw")


if __name__ == "__main__":
    entrypoint.main("ingest", run, _arguments, lock=lambda args: f"ingest-{args.source}")
