"""The audit: every file and every caption row of the raw data is either kept or set aside for a reason."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import DataError

# Why a file or a row was set aside: the codes and descriptions used in reports and set_aside.csv.
FILE_REASONS = {
    # ingest
    "not_a_picture_file": "not a picture, by its file name",
    "unsupported_format": "unsupported picture format; convert it to JPEG or PNG",
    "not_a_picture": "named like a picture, but not a picture file",
    "damaged": "cut off, or a wrong checksum",
    "encrypted": "encrypted in the zip",
    "unsafe_path": "path traversal: its path leads out of the archive",
    "link": "a link to another file",
    "duplicate_name": "a later file in the zip has the same name",
    "nested_archive": "an archive within the archive; unpack it, or put it beside the other archive",
    "bomb": "zip bomb: unpacks to over 200 times its size",
    "too_many_bytes": "the file is too large for a photo",
    "too_many_pixels": "more pixels than ingest.max_pixels",
    "extreme_shape": "one side is more than 50 times as long as the other",
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
    "picture_missing": "the source has no picture of that name",
    "picture_ambiguous": "the source has several pictures of that name",
    "picture_set_aside": "its picture was set aside",
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
    *("not_a_picture_file", "excluded", "video"),
    *("corrections_undone", "superseded", "no_caption_of_its_own", "corrected"),
}

_COLUMNS = ["kind", "source", "file", "row", "reason", "in_words"]
# A spreadsheet runs a cell that starts like this as a formula, unless an apostrophe precedes it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


@dataclass(frozen=True)
class SetAside:
    """A file or a row that was set aside."""

    kind: str  # "file" or "row"
    source: str
    file: str
    row: int | None
    reason: str


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

    def set_aside_row(self, source: str, file: str, row: int, reason: str) -> None:
        """Set aside a row of a captions file."""
        self.set_aside.append(SetAside("row", source, file, row, reason))

    def reasons(self, kind: str) -> Counter[str]:
        """Count what was set aside of a kind (`file` or `row`) by reason."""
        return Counter(item.reason for item in self.set_aside if item.kind == kind)

    def check_share(self, data: str, limit: float) -> None:
        """Check that not too much of the data is lost.

        Args:
            data: names the audited data in the message.
            limit: the largest fraction of the pictures, and of the rows, that may be lost.

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
                    f"{data}: {lost.total():,} of {total:,} {plural} would be set aside ({counts}), more than"
                    f" ingest.max_set_aside = {limit:g} allows; fix the source, or raise the limit in params.yaml"
                )

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
        writer.writerow(_COLUMNS)
        for item in items:
            file_name = f"'{item.file}" if item.file.startswith(_FORMULA) else item.file
            writer.writerow([item.kind, item.source, file_name, item.row, item.reason, descriptions[item.reason]])


def read_set_aside(path: Path) -> Iterator[SetAside]:
    """Yield what `write_set_aside` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            file_name = row["file"].removeprefix("'")
            number = int(row["row"]) if row["row"] else None
            yield SetAside(row["kind"], row["source"], file_name, number, row["reason"])
