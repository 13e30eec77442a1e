"""The account: what became of every picture and every row of captions that came in."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import DataError

# Why a file or a row was set aside, as reports and set_aside.csv name it.
FILE_REASONS = {
    # of ingest
    "not_a_picture_file": "its name is not that of a picture",
    "unsupported_format": "a picture of a kind that is not read; convert it to JPEG or PNG",
    "not_a_picture": "it has a picture's name, but is no picture",
    "damaged": "cut off, or a wrong checksum",
    "encrypted": "encrypted in the zip",
    "unsafe_path": "its path leads out of the archive",
    "link": "a link to another file",
    "duplicate_name": "a later file of the zip has the same name",
    "nested_archive": "an archive in the archive; unpack it, or bring it beside the other",
    "bomb": "unpacks to over 200 times its size, as no photo does",
    "too_many_bytes": "larger than any photo",
    "too_many_pixels": "more than ingest.max_pixels",
    "extreme_shape": "one side is more than 50 times the other",
    "same_bytes": "the same bytes as another picture; its captions went to that one",
    "no_caption": "no row with a caption names it",
    # of build
    "in_several_sources": "the same bytes as a picture of another source; its captions went to that one",
    "excluded": "ingest.exclude names it, or a near-duplicate of it",
    "no_caption_left": "build.captions left none of its captions",
    "near_duplicate": "nearly the same as a picture of a split nearer to the test",
}
ROW_REASONS = {
    # of ingest
    "malformed": "fewer or more fields than the first row, or not the expected ones",
    "empty": "the caption is empty",
    "picture_missing": "no picture of that name in the source",
    "picture_ambiguous": "several pictures of that name in the source",
    "picture_set_aside": "its picture was set aside",
    "video": "it names a video",
    # of build
    "too_few_words": "fewer words than build.captions.min_words, once cleaned",
    "too_many_words": "more words than build.captions.max_words, or over 50 times as many characters, once cleaned",
    "same_caption": "its picture has the same caption, once cleaned, from another row",
}

# Of second copies nothing is lost, nor of what systems leave in their zips or the user asked to leave out.
_COPIES = {"same_bytes", "in_several_sources", "same_caption"}
_NOT_MEANT = {"not_a_picture_file", "excluded", "video"}

_HEAD = ["kind", "source", "file", "row", "reason", "in_words"]


@dataclass(frozen=True)
class Aside:
    """A file, or a row of one, that was set aside."""

    kind: str  # "file" or "row"
    source: str
    file: str
    row: int | None
    reason: str


@dataclass
class Account:
    """What came in, what was kept, and what was set aside and why."""

    files: int = 0
    caption_files: int = 0
    pictures: int = 0
    rows: int = 0
    captions: int = 0
    aside: list[Aside] = field(default_factory=list)

    def set_aside_file(self, source: str, file: str, reason: str) -> None:
        """Set aside a file."""
        self.aside.append(Aside("file", source, file, None, reason))

    def set_aside_row(self, source: str, file: str, row: int, reason: str) -> None:
        """Set aside a row of a captions file."""
        self.aside.append(Aside("row", source, file, row, reason))

    def reasons(self, kind: str) -> Counter[str]:
        """How many of a kind (`file` or `row`) were set aside for each reason."""
        return Counter(aside.reason for aside in self.aside if aside.kind == kind)

    def check_share(self, what: str, most: float) -> None:
        """Stop before anything is changed where so much is set aside that the data is hardly what was meant.

        Args:
            what: is accounted for, for the message.
            most: the part that may be lost of the pictures, and of the rows.

        Raises:
            DataError: more than that is set aside.
        """
        for kind, called, kept in (("row", "rows", self.captions), ("file", "pictures", self.pictures)):
            every = self.reasons(kind)
            reasons = Counter({reason: n for reason, n in every.items() if reason not in _COPIES | _NOT_MEANT})
            lost, copies = reasons.total(), sum(every[reason] for reason in _COPIES)
            came = kept + copies + lost
            if lost > most * came:
                seen = ", ".join(f"{many:,} {reason}" for reason, many in reasons.most_common())
                raise DataError(
                    f"{what}: {lost:,} of {came:,} {called} would be set aside ({seen}), more than"
                    f" ingest.max_set_aside = {most:g} allows; mend the source, or raise it in params.yaml"
                )

    def report(self) -> dict[str, dict[str, object]]:
        """The counts, after checking that they add up."""
        files, rows = self.reasons("file"), self.reasons("row")
        assert self.files == self.caption_files + self.pictures + files.total(), "a file is unaccounted for"
        assert self.rows == self.captions + rows.total(), "a row is unaccounted for"
        return {
            "files": {
                "in": self.files,
                "captions_files": self.caption_files,
                "pictures_kept": self.pictures,
                "set_aside": dict(sorted(files.items())),
            },
            "rows": {"in": self.rows, "captions_kept": self.captions, "set_aside": dict(sorted(rows.items()))},
        }


# A spreadsheet takes a cell that begins so for a formula, unless an apostrophe stands before it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def write_set_aside(path: Path, aside: Iterable[Aside]) -> None:
    """Write each file and row that was set aside, with its reason, as a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = FILE_REASONS | ROW_REASONS
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEAD)
        for item in aside:
            file_name = f"'{item.file}" if item.file.startswith(_FORMULA) else item.file
            writer.writerow([item.kind, item.source, file_name, item.row, item.reason, words[item.reason]])


def read_set_aside(path: Path) -> Iterator[Aside]:
    """Read what `write_set_aside` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            file_name = row["file"].removeprefix("'")
            yield Aside(row["kind"], row["source"], file_name, int(row["row"]) if row["row"] else None, row["reason"])
