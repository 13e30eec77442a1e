"""Merge the records of all sources: one entry per picture, with everything that the sources have for it.

Corrections of people are a source like any other, and also withdraw captions of other sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.sections.build import Captions
from pipeline.data.audit import Audit, read_set_aside
from pipeline.data.dataset import Example, IngestedPicture, RawCaption, read_ingested, read_withdrawn
from pipeline.data.text import caption_cleaner
from pipeline.runtime.atomic_files import read_json


@dataclass
class MergedPicture:
    """A picture with what every source has for it.

    Attributes:
        found_in: the sources that have it, and their records.
        captions: each cleaned caption -> the source and row that it is from.
    """

    found_in: list[tuple[str, IngestedPicture]]
    captions: dict[str, tuple[str, RawCaption]] = field(default_factory=dict)

    @property
    def first(self) -> IngestedPicture:
        """The record of the first source."""
        return self.found_in[0][1]

    def raw_captions(self) -> list[tuple[str, RawCaption]]:
        """Return all captions as written, with their sources."""
        return [(source, caption) for source, record in self.found_in for caption in record.captions]

    def example(self) -> Example:
        """Return the line of the data set for this picture."""
        return Example(
            file_name=self.first.file_name,
            captions=list(self.captions),
            sha256=self.first.sha256,
            sources=[source for source, _ in self.found_in],
            origins=[record.origin for _, record in self.found_in],
        )


def merge(sources: Sequence[str], audit: Audit) -> list[MergedPicture]:
    """Return one entry per picture, in the order of the sources' names and their archives.

    With this order new pictures are usually last, so earlier shards stay unchanged. What ingest counted and set aside
    is added to `audit`.

    Raises:
        DataError: a source has not been ingested.
    """
    merged: dict[str, MergedPicture] = {}
    corrections = {source for source in sources if read_withdrawn(paths.INGEST / source) is not None}
    # Corrections come last, so that a correction moves no picture to another shard.
    for source in sorted(sources, key=lambda name: (name in corrections, name)):
        report = paths.INGEST_REPORTS / f"{source}.json"
        if not report.is_file():
            raise DataError(f"{report}: not found; run `dvc repro`, which ingests every source first")
        counts = read_json(report)
        audit.files += counts["files"]["in"]
        audit.captions_files += counts["files"]["captions_files"]
        audit.rows += counts["rows"]["in"]
        audit.set_aside += read_set_aside(paths.INGEST / source / "set_aside.csv")
        for record in read_ingested(paths.INGEST / source):
            if record.sha256 in merged:
                audit.set_aside_file(source, record.origin, "in_several_sources")
                if source in corrections:  # the other source alone says what the split follows
                    record = replace(record, split_by=[])
            merged.setdefault(record.sha256, MergedPicture([])).found_in.append((source, record))
    return list(merged.values())


class CorrectedCaptions:
    """The corrections of people: sources with captions that they wrote or accepted, and captions that they withdrew."""

    def __init__(self, sources: Sequence[str], policy: Captions) -> None:
        found = {source: read_withdrawn(paths.INGEST / source) for source in sources}
        clean_caption = caption_cleaner(policy)
        self._sources = {source for source, withdrawn in found.items() if withdrawn is not None}
        self._withdrawn: dict[str, set[str]] = {}  # SHA-256 -> cleaned texts
        for one in (one for withdrawn in found.values() for one in withdrawn or ()):
            self._withdrawn.setdefault(one.sha256, set()).add(clean_caption(one.text))

    def withdraw(self, source: str, sha256: str, caption: str) -> bool:
        """Return whether a cleaned caption was withdrawn. Captions of people's corrections never are."""
        return source not in self._sources and caption in self._withdrawn.get(sha256, ())

    def count(
        self, pictures: Sequence[MergedPicture], kept: Mapping[str, Sequence[Example]]
    ) -> dict[str, dict[str, int]]:
        """Return for each split how many pictures were corrected, and how many captions are corrections."""
        written = {
            picture.first.sha256: sum(source in self._sources for source, _ in picture.raw_captions())
            for picture in pictures
        }
        return {
            split: {
                "pictures": sum(bool(written[e.sha256]) or e.sha256 in self._withdrawn for e in examples),
                "captions": sum(written[e.sha256] for e in examples),
            }
            for split, examples in kept.items()
        }
