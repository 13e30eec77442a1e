"""The audit: every file and every caption row of the raw data is either kept or set aside for a reason."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import DataError

# Why a file or a row was set aside: the codes and descriptions used in reports and set_aside.csv.
FILE_REASONS = {
    # ingest
    "not_a_picture_file": "not a picture, by its file name",
    "unsupported_format": "unsupported picture format; convert it to JPEG or PNG",
    "not_captions": "a table without a picture column and a caption column",
    "not_a_picture": "named like a picture, but not a picture file",
    "damaged": "cut off, or a wrong checksum",
    "encrypted": "encrypted in the zip",
    "unsafe_path": "path traversal: its path leads out of the archive",
    "unsafe_key": "its key in the bucket can't be the path of a file",
    "link": "a link to another file",
    "duplicate_name": "a later file in the zip has the same name",
    "nested_archive": "an archive within the archive; unpack it, or put it beside the other archive",
    "bomb": "zip bomb: unpacks to over 200 times its size",
    "too_many_bytes": "the file is too large for a photo",
    "too_many_pixels": "more pixels than ingest.max_pixels",
    "extreme_shape": "one side is more than 50 times as long as the other",
    "too_small": "the shorter side has fewer pixels than ingest.min_side",
    "same_bytes": "same bytes as another picture of the source, which keeps the captions of both",
    "no_caption": "no row has a caption for it",
    "corrections_undone": "all corrections of it were undone, replaced or rejected",
    # build
    "in_several_sources": "same bytes as a picture of another source, which keeps the captions of both",
    "excluded": "it, or a near-duplicate, is listed in ingest.exclude",
    "no_caption_left": "build.captions or corrections removed all its captions",
    "near_duplicate": "near-duplicate of a picture in another split (test has priority, then validation)",
}
ROW_REASONS = {
    # ingest
    "malformed": "wrong number of fields, or unexpected fields",
    "empty": "the caption is empty",
    "picture_missing": "the source has no file of that name",
    "picture_ambiguous": "the source has several pictures of that name",
    "picture_set_aside": "its picture was set aside, for the reason that its own line says",
    "video": "it belongs to a video",
    "superseded": "a correction that its author undid or replaced later",
    "no_caption_of_its_own": "a rejection, or the undoing of a correction",
    # ingest and build
    "corrected": "a correction replaced or rejected it",
    # build
    "too_few_words": "fewer words than build.captions.min_words after cleaning",
    "too_many_words": "more words than build.captions.max_words, or over 50 times as many characters, after cleaning",
    "same_caption": "same caption, after cleaning, as another row of its picture",
}

# Reasons that lose no data: duplicates, and files that are no data or that the user excludes.
_DUPLICATES = {"same_bytes", "in_several_sources", "same_caption"}
_INTENDED = {
    *("not_a_picture_file", "not_captions", "excluded", "video"),
    *("corrections_undone", "superseded", "no_caption_of_its_own", "corrected"),
}

_STOPPED = paths.WORK / "set_aside"  # the lists of runs that stopped; nothing reads them but people
_COLUMNS = ["kind", "source", "file", "row", "reason", "in_words", "names"]
# A spreadsheet runs a cell that starts like this as a formula, unless an apostrophe precedes it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


@dataclass(frozen=True)
class SetAside:
    """A file or a row that was set aside.

    Attributes:
        kind: `file` or `row`.
        source: a folder of `data/raw`.
        file: the file, or the captions file of the row.
        row: the number of the row; None for a file.
        reason: a code of `FILE_REASONS` or `ROW_REASONS`.
        names: the picture that the row names, as written; "" for a file.
    """

    kind: str
    source: str
    file: str
    row: int | None
    reason: str
    names: str = ""


@dataclass
class Audit:
    """Counts of what came in and what was kept, and everything that was set aside with its reason.

    Attributes:
        files: all files of the sources.
        captions_files: files that captions were read from.
        pictures: pictures kept.
        rows: all rows of the captions files.
        captions: captions kept.
        set_aside: files and rows that were not kept.
    """

    files: int = 0
    captions_files: int = 0
    pictures: int = 0
    rows: int = 0
    captions: int = 0
    set_aside: list[SetAside] = field(default_factory=list)

    def set_aside_file(self, source: str, file: str, reason: str) -> None:
        """Set aside a file."""
        self.set_aside.append(SetAside("file", source, file, None, reason))

    def set_aside_row(self, source: str, file: str, row: int, reason: str, names: str = "") -> None:
        """Set aside a row of a captions file; `names` is the picture that it names."""
        self.set_aside.append(SetAside("row", source, file, row, reason, names))

    def reasons(self, kind: str) -> Counter[str]:
        """Count what was set aside of a kind (`file` or `row`) by reason."""
        return Counter(item.reason for item in self.set_aside if item.kind == kind)

    def check_share(self, data: str, limit: float, example: str = "") -> None:
        """Check that not too much of the data is lost.

        Args:
            data: names the audited data in the message.
            limit: the largest fraction of the pictures, and of the rows, that may be lost.
            example: is added to the counts in the message.

        Raises:
            DataError: more is lost.
        """
        for kind, plural, kept in (("row", "rows", self.captions), ("file", "pictures", self.pictures)):
            reasons = self.reasons(kind)
            lost = Counter({reason: n for reason, n in reasons.items() if reason not in _DUPLICATES | _INTENDED})
            total = kept + sum(reasons[reason] for reason in _DUPLICATES) + lost.total()
            if lost.total() > limit * total:
                counts = ", ".join(f"{count:,} {reason}" for reason, count in lost.most_common())
                raise DataError(
                    f"{data}: {lost.total():,} of {total:,} {plural} would be set aside ({counts}{example}), more than"
                    f" ingest.max_set_aside = {limit:g} allows; fix the source, or raise the limit in params.yaml"
                )

    @contextmanager
    def listed_if_stopped(self, name: str) -> Iterator[None]:
        """If the block raises a `DataError`, write what was set aside to `.work/set_aside/NAME.csv` and name that file.

        The list in the outputs is the one of the last good run.
        """
        file = _STOPPED / f"{name}.csv"
        try:
            yield
        except DataError as error:
            if not self.set_aside:
                raise
            write_set_aside(file, self.set_aside)
            raise DataError(f"{error}; each file and row is listed in {file}") from None
        file.unlink(missing_ok=True)

    def report(self) -> dict[str, dict[str, object]]:
        """Return the counts, after checking that they add up."""
        files, rows = self.reasons("file"), self.reasons("row")
        assert self.files == self.captions_files + self.pictures + files.total(), "a file is unaccounted for"
        assert self.rows == self.captions + rows.total(), "a row is unaccounted for"
        return {
            "files": {
                "in": self.files,
                "captions_files": self.captions_files,
                "pictures_kept": self.pictures,
                "set_aside": dict(sorted(files.items())),
            },
            "rows": {"in": self.rows, "captions_kept": self.captions, "set_aside": dict(sorted(rows.items()))},
        }


def write_set_aside(path: Path, items: Iterable[SetAside]) -> None:
    """Write each file and row that was set aside, with its reason, as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptions = FILE_REASONS | ROW_REASONS
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # Before Python 3.13 the first leaves a carriage return unquoted, which the reader takes as the end of a row.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(_COLUMNS)
        for item in items:
            file_name, names = _escape(item.file), _escape(item.names)
            (quoting if "\r" in file_name + names else writer).writerow(
                [item.kind, item.source, file_name, item.row, item.reason, descriptions[item.reason], names]
            )


def _escape(name: str) -> str:
    return f"'{name}" if name.startswith(_FORMULA) else name


def read_set_aside(path: Path) -> Iterator[SetAside]:
    """Yield what `write_set_aside` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            file_name, names = row["file"].removeprefix("'"), row["names"].removeprefix("'")
            number = int(row["row"]) if row["row"] else None
            yield SetAside(row["kind"], row["source"], file_name, number, row["reason"], names)
