"""Ingest a source: data/raw/SOURCE (a stranger's archive) -> data/ingest/SOURCE (checked pictures, records).

Every row and every file is accounted for: kept, or set aside with its reason.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tqdm import tqdm

from pipeline import paths, stage
from pipeline.data import pictures
from pipeline.data.archive import Archive, Member, MemberError, open_archive
from pipeline.data.captions import clean
from pipeline.data.pictures import Normalised
from pipeline.data.records import Ingested, PictureWriter, Row, write_ingested
from pipeline.data.sources import CaptionRow, PictureIndex, caption_files, find, rows
from pipeline.errors import ConfigError, DataError
from pipeline.files import swapped_in, write_json
from pipeline.params import Ingest, Params

PICTURE_BYTES = 256 * 2**20  # of one file in the archive; no photo comes near

# Why a file or row was set aside, as reports and set_aside.csv name it.
FILE_REASONS = {
    "not_a_picture_file": "its name is not that of a picture",
    "not_a_picture": "it has a picture's name, but is no picture",
    "damaged": "cut off, or a wrong checksum",
    "encrypted": "encrypted in the archive",
    "too_many_bytes": "larger than any photo",
    "too_many_pixels": "more than ingest.max_pixels",
    "extreme_shape": "one side is more than 50 times the other",
    "same_bytes": "the same bytes as another picture; its captions went to that one",
    "no_caption": "no row with a caption names it",
}
ROW_REASONS = {
    "malformed": "fewer or more fields than the header; quote a caption that has the delimiter in it",
    "empty": "the caption is empty",
    "picture_missing": "no picture of that name in the archive",
    "picture_ambiguous": "several pictures of that name in the archive",
    "picture_set_aside": "its picture was set aside",
}

# Files of which nothing is lost: what systems leave in their zips, and a second copy of a picture.
_NO_LOSS = {"not_a_picture_file", "same_bytes"}
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Account:
    """What became of every file and row of a source."""

    files: int = 0
    caption_files: int = 0
    pictures: int = 0
    rows: int = 0
    captions: int = 0
    aside: list[tuple[str, str, int | None, str]] = field(default_factory=list)

    def set_aside(self, kind: str, file: str, row: int | None, reason: str) -> None:
        """Set aside a `file` (or a `row` of one) for a `reason`."""
        self.aside.append((kind, file, row, reason))

    def check_share(self, archive: Path, most: float) -> None:
        """Stop before anything is changed where so much is set aside that the archive is hardly what was meant.

        Raises:
            DataError: more than the part `most` of the pictures, or of the rows, is set aside.
        """
        for kind, what, kept in (("file", "pictures", self.pictures), ("row", "rows", self.captions)):
            reasons = Counter(reason for of, _, _, reason in self.aside if of == kind and reason not in _NO_LOSS)
            lost = reasons.total()
            if lost > most * (kept + lost):
                seen = ", ".join(f"{many:,} {reason}" for reason, many in reasons.most_common())
                raise DataError(
                    f"{archive}: {lost:,} of {kept + lost:,} {what} would be set aside ({seen}), more than"
                    f" ingest.max_set_aside = {most:g} allows; mend the source, or raise it in params.yaml"
                )

    def report(self) -> dict[str, object]:
        """The counts, after checking that they add up."""
        files = Counter(reason for kind, _, _, reason in self.aside if kind == "file")
        lines = Counter(reason for kind, _, _, reason in self.aside if kind == "row")
        assert self.files == self.caption_files + self.pictures + files.total(), "a file is unaccounted for"
        assert self.rows == self.captions + lines.total(), "a row is unaccounted for"
        return {
            "files": {
                "in": self.files,
                "captions_files": self.caption_files,
                "pictures_kept": self.pictures,
                "set_aside": dict(sorted(files.items())),
            },
            "rows": {"in": self.rows, "captions_kept": self.captions, "set_aside": dict(sorted(lines.items()))},
        }


def run(params: Params, args: argparse.Namespace) -> str:
    """Ingest one source; returns the last line to print."""
    name, settings = args.source, params.ingest
    if name not in settings.sources:  # also keeps a name like ../x from leading out of the folder
        raise ConfigError(
            f"params.yaml: ingest.sources: has no {name!r}, only {', '.join(settings.sources)}; add it there"
        )
    source = find(paths.RAW / name)
    folder, report = paths.INGEST / name, paths.INGEST_REPORTS / f"{name}.json"
    with open_archive(source.archive) as archive, swapped_in(folder, report) as (new_folder, new_report):
        account = Account()
        named = _pictures_by_name(archive, caption_files(source, archive), account)
        captions = _captions_by_picture(rows(source, archive), named, account)
        records = _ingest_pictures(archive, named, captions, new_folder, settings, account)
        if not records:
            reasons = Counter(reason for _, _, _, reason in account.aside)
            seen = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            raise DataError(f"{source.archive}: no picture with a caption in it ({seen}); check that the names agree")
        account.check_share(source.archive, settings.max_set_aside)
        write_ingested(new_folder, records)
        _write_set_aside(new_folder / "set_aside.csv", account)
        write_json(new_report, account.report())
    return (
        f"{account.pictures:,} pictures with {account.captions:,} captions in {folder}; set aside"
        f" {account.files - account.caption_files - account.pictures:,} files and"
        f" {account.rows - account.captions:,} rows (reasons: {report}; each one: {folder / 'set_aside.csv'})"
    )


def _pictures_by_name(archive: Archive, caption_files: list[int], account: Account) -> dict[int, Member]:
    """The members that have a picture's name, by index; those that have not are set aside."""
    members = archive.members()
    account.files, account.caption_files = len(members), len(caption_files)
    named = {}
    for index, member in enumerate(members):
        path = PurePosixPath(member.name)
        hidden = "__MACOSX" in path.parts or path.name.startswith("._")
        if path.suffix.lower() in pictures.SUFFIXES and not hidden:
            named[index] = member
        elif index not in caption_files:
            account.set_aside("file", member.name, None, "not_a_picture_file")
    return named


def _captions_by_picture(
    caption_rows: Iterable[CaptionRow], named: dict[int, Member], account: Account
) -> dict[int, list[Row]]:
    """The captions of each member of the archive, by index; rows that lead nowhere are set aside."""
    captions: dict[int, list[Row]] = {index: [] for index in named}
    by_name = PictureIndex(named)
    for row in caption_rows:
        account.rows += 1
        found = by_name.find(row.picture, row.folder) if row.picture else set()
        reason = None
        if row.picture is None:
            reason = "malformed"
        elif not clean(row.caption.text):
            reason = "empty"
        elif len(found) != 1:
            reason = "picture_ambiguous" if found else "picture_missing"
        if reason:
            account.set_aside("row", row.caption.file, row.caption.row, reason)
        else:
            captions[next(iter(found))].append(row.caption)
    return captions


def _ingest_pictures(
    archive: Archive,
    named: dict[int, Member],
    captions: dict[int, list[Row]],
    folder: Path,
    settings: Ingest,
    account: Account,
) -> list[Ingested]:
    """Decode, check and store each picture that has a caption, once; returns their records in archive order.

    Members with the same bytes are one picture, with the captions of all.
    """
    same: dict[str, list[int]] = {}  # SHA-256 -> the members that have these bytes
    origin: dict[str, int] = {}  # SHA-256 -> the first of them that has a caption
    outcome: dict[str, Normalised | str] = {}  # SHA-256 -> the picture (its bytes already stored), or why not

    def readable() -> Iterator[tuple[str, bytes]]:
        for index, member in tqdm(named.items(), desc="ingest", unit=" pictures", disable=None):
            try:
                data = archive.read(index, PICTURE_BYTES)
            except MemberError as error:
                _set_aside_picture(account, member, captions[index], error.reason)
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            same.setdefault(sha256, []).append(index)
            if captions[index] and sha256 not in origin:
                origin[sha256] = index
                yield sha256, data

    def normalise(item: tuple[str, bytes]) -> tuple[str, Normalised | str]:
        try:
            return item[0], pictures.normalise(item[1], settings.image_size, settings.max_pixels)
        except pictures.PictureError as error:
            return item[0], error.reason

    with PictureWriter(folder) as writer:
        for sha256, made in _map(normalise, readable()):
            if isinstance(made, Normalised):
                writer.add(f"{sha256}.jpg", made.jpeg)
                made = replace(made, jpeg=b"")
            outcome[sha256] = made

    records = []
    for sha256, members in same.items():
        made = outcome.get(sha256, "no_caption")
        for index in members:
            if isinstance(made, str):
                _set_aside_picture(account, named[index], captions[index], made)
            elif index != origin[sha256]:
                account.set_aside("file", named[index].name, None, "same_bytes")
        if isinstance(made, Normalised):
            of_it = [row for index in members for row in captions[index]]
            account.pictures += 1
            account.captions += len(of_it)
            records.append(
                Ingested(
                    sha256=sha256,
                    file_name=f"{sha256}.jpg",
                    origin=f"{archive.path.name}:{named[origin[sha256]].name}",
                    width=made.width,
                    height=made.height,
                    phash=f"{made.phash:016x}",
                    thumbnail=made.thumbnail.hex(),
                    captions=of_it,
                )
            )
    return records


def _set_aside_picture(account: Account, member: Member, rows_of_it: list[Row], reason: str) -> None:
    account.set_aside("file", member.name, None, reason)
    for row in rows_of_it:
        account.set_aside("row", row.file, row.row, "picture_set_aside")


def _map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on one thread a core (Pillow lets go of the interpreter while it decodes), results in order.

    Unlike `Executor.map` it reads only a few items ahead, so that an archive of any size fits in memory.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_set_aside(path: Path, account: Account) -> None:
    words = FILE_REASONS | ROW_REASONS
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "file", "row", "reason", "in_words"])
        for kind, name, row, reason in account.aside:
            writer.writerow([kind, name, row, reason, words[reason]])


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the name of a folder in data/raw")


if __name__ == "__main__":
    stage.main("ingest", run, _arguments, lock=lambda args: f"ingest-{args.source}")
