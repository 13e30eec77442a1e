"""Ingest a source: data/raw/SOURCE (raw archives) -> data/ingest/SOURCE (checked pictures and records).

Every row and every file is accounted for: it is kept, or set aside with a reason. Pictures that an earlier run decoded
are not decoded again; they are found by the hash of their raw bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.config.sections.ingest import Ingest
from pipeline.data import dataset, images
from pipeline.data.audit import Audit, write_set_aside
from pipeline.data.dataset import IngestedPicture, PictureWriter, write_ingested, write_withdrawn
from pipeline.data.earlier_runs import EarlierRuns
from pipeline.data.images import Normalised
from pipeline.data.normalising import Normaliser
from pipeline.data.sources.archive import Files, open_files
from pipeline.data.sources.delimited import Columns
from pipeline.data.sources.matching import MatchedCaptions
from pipeline.data.sources.member import MemberError
from pipeline.engine.base import Engine, Read
from pipeline.engine.choice import open_engine
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import sha256_of, swapped_in, write_json
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of
from pipeline.runtime.progress import progress_bar

_MAX_PICTURE_BYTES = 256 * 2**20  # per file; no photo is this large


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
        ExitStack() as stack,
    ):
        earlier = EarlierRuns(name, folder, _made_by(settings))
        audit = Audit()
        matched = MatchedCaptions(name, files, audit, Columns(settings.columns.picture, settings.columns.caption))
        source = _Source(name, files, matched, audit, earlier)
        stack.enter_context(source.kept_if_stopped(new_folder))
        records = source.ingest_pictures(new_folder, settings, engine, bytes_of(params.runtime.memory_gb))
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
        earlier.sign(new_folder)
        write_set_aside(new_folder / "set_aside.csv", audit.set_aside)
        write_json(
            new_report,
            {**audit.report(), "captions_files": matched.files_read, "foreign_paths": matched.foreign_paths},
        )
    earlier.finish()
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


class _Member(NamedTuple):
    """A member that has been read.

    Attributes:
        number: the member's index.
        sha256: of its bytes; None if they cannot be read.
        known: an earlier run's picture, the reason why the member cannot be read, or None.
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
    """A source that is being ingested: its files, the captions of each picture, the audit of both, and earlier runs."""

    def __init__(self, name: str, files: Files, matched: MatchedCaptions, audit: Audit, earlier: EarlierRuns) -> None:
        self.name = name
        self.files = files
        self.matched = matched
        self.audit = audit
        self.earlier = earlier
        # SHA-256 -> first member with a caption, and its result
        self.results: dict[str, tuple[int, Normalised | str]] = {}

    def ingest_pictures(self, folder: Path, settings: Ingest, engine: Engine, memory: int) -> list[IngestedPicture]:
        """Decode, check and store each picture that has a caption; return the records in order.

        Members with the same bytes become one picture with the captions of all.

        Args:
            folder: for the pictures.
            settings: the params of this stage.
            engine: where pictures are decoded.
            memory: bytes that files and decoded pictures may take, in each process.
        """
        sha256s: dict[int, str] = {}
        same_bytes: dict[str, list[int]] = {}  # SHA-256 -> the members that have these bytes
        results = self.results
        # Files and decoded pictures have a share each, because a thread that holds a file waits for its picture. The
        # rest is for what libraries and the allocator keep.
        files = MemoryBudget(memory // 4)
        normaliser = Normaliser(settings.image_size, settings.max_pixels, memory * 5 // 8)
        decoded = engine.map(
            lambda index: self._read(index, files), normaliser, self.matched.captions, readers=self.files.readers
        )
        with PictureWriter(folder, self.earlier.last) as writer, ExitStack() as stack:
            if self.files.readers:
                stack.callback(writer.close)  # `kept_if_stopped` needs whole shards
            for (index, sha256, known), new in progress_bar(
                decoded, total=len(self.matched.captions), desc=f"ingest {self.name}", unit=" pictures"
            ):
                result = new or known
                if sha256 is None:
                    assert isinstance(result, str)
                    self.matched.set_aside(index, result)
                    continue
                sha256s[index] = sha256
                self.earlier.note(self.files.stamp(index), sha256)
                same_bytes.setdefault(sha256, []).append(index)
                if result is None or sha256 in results:
                    continue
                if isinstance(result, Normalised):
                    result = self._stored(sha256, result, settings.min_side, writer)
                results[sha256] = index, result
        return self._records(same_bytes, results, sha256s)

    @contextmanager
    def kept_if_stopped(self, folder: Path) -> Iterator[None]:
        """If the block fails and the source is in a bucket, keep the pictures in `folder` for the next run."""
        try:
            yield
        except BaseException:
            if self.files.readers:
                found = ((sha256, one) for sha256, (_, one) in self.results.items() if isinstance(one, Normalised))
                with suppress(OSError, DataError):
                    self.earlier.keep(folder, [_record_of(sha256, one) for sha256, one in found])
            raise

    @contextmanager
    def _read(self, index: int, budget: MemoryBudget) -> Iterator[Read[_Member]]:
        """Read a member, whose bytes need work if it has a caption and no earlier run knows it."""
        has_captions = bool(self.matched.captions[index])
        if before := self.earlier.sha256(self.files.stamp(index)):
            known = self.earlier.find(before)
            if known or not has_captions:
                yield Read(_Member(index, before, known if has_captions else None), None)
                return
        # Reading joins pieces, so it takes the size twice.
        with budget.reserve(2 * min(self.files.size(index), _MAX_PICTURE_BYTES)):
            try:
                data = self.files.read(index, _MAX_PICTURE_BYTES)
            except MemberError as error:
                yield Read(_Member(index, None, error.reason), None)
                return
            sha256 = images.identity(data)
            known = self.earlier.find(sha256) if has_captions else None
            yield Read(_Member(index, sha256, known), data if has_captions and known is None else None)

    def _stored(self, sha256: str, picture: Normalised, min_side: int, writer: PictureWriter) -> Normalised | str:
        """Store a picture; return it without its JPEG, or the reason why it is not stored."""
        # Only larger pictures are reduced, and never below this.
        if min(picture.width, picture.height) < min_side:
            return "too_small"
        writer.add(f"{sha256}.jpg", picture.jpeg or self.earlier.reader(sha256))
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
        return replace(
            _record_of(sha256, picture),
            origin=self.files.members[group.first].place,
            copies=[self.files.members[index].place for index in group.members if index != group.first],
            split_by=sorted(split_by),
            splits=sorted({split for index in group.members for split in self.matched.splits.get(index, ())}),
            captions=[caption for index in group.members for caption in self.matched.captions[index]],
        )


def _record_of(sha256: str, picture: Normalised) -> IngestedPicture:
    """Return the part of a picture's record that depends on its bytes alone."""
    return IngestedPicture(
        sha256=sha256,
        file_name=f"{sha256}.jpg",
        origin="",
        copies=[],
        width=picture.width,
        height=picture.height,
        phash=f"{picture.phash:016x}",
        thumbnail=picture.thumbnail.hex(),
        split_by=[],
        splits=[],
        captions=[],
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the name of a folder in data/raw")


if __name__ == "__main__":
    entrypoint.main("ingest", run, _arguments, lock=lambda args: f"ingest-{args.source}")
