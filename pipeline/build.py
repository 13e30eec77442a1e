"""Build the data set: data/ingest/* -> data/dataset/{train,validation,test}.

Build cleans captions, merges the same picture from several sources, removes near-duplicates that would span two splits,
leaves out excluded pictures, and assigns every picture to a split that new data never changes. It continues the audit
of ingest, so that every raw file and row is accounted for up to the training data.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.config.sections.build import Captions
from pipeline.data import report as data_report
from pipeline.data.audit import Audit, read_set_aside, write_set_aside
from pipeline.data.dataset import (
    Example,
    IngestedPicture,
    PictureReader,
    RawCaption,
    read_ingested,
    read_withdrawn,
    write_split,
)
from pipeline.data.exclusion import Exclusion
from pipeline.data.near_duplicates import Fingerprints
from pipeline.data.split import SPLITS, duplicates_across_splits, furthest_from_training, split_of
from pipeline.data.text import caption_cleaner, caption_words, clean
from pipeline.models.vocabulary import Unknown, unknown_tokens
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json
from pipeline.runtime.progress import progress_bar

_MAX_UNKNOWN = 0.02  # share of unknown tokens above which a model misses what people wrote
_MAX_CHARACTERS_PER_WORD = 50  # a caption with more is not text
_CHANGED_CAPTIONS = 20  # examples in the report


@dataclass
class _Picture:
    """A picture with what every source has for it; maps each cleaned caption to the source and row that it is from."""

    found_in: list[tuple[str, IngestedPicture]]
    captions: dict[str, tuple[str, RawCaption]] = field(default_factory=dict)

    @property
    def first(self) -> IngestedPicture:
        return self.found_in[0][1]

    def raw_captions(self) -> list[tuple[str, RawCaption]]:
        return [(source, caption) for source, record in self.found_in for caption in record.captions]

    def example(self) -> Example:
        return Example(
            file_name=self.first.file_name,
            captions=list(self.captions),
            sha256=self.first.sha256,
            sources=[source for source, _ in self.found_in],
            origins=[record.origin for _, record in self.found_in],
        )


def run(params: Params, args: argparse.Namespace) -> str:
    """Build the data set from all sources; return the last line to print."""
    audit = Audit()
    pictures = _merge(params.ingest.sources, audit)
    pictures, exclusion = _exclude(pictures, params, audit)
    corrections = _Corrections(params.ingest.sources, params.build.captions)
    pictures, changed = _clean(pictures, params.build.captions, corrections, audit)
    kept, duplicates = _split(pictures, params, audit)
    audit.pictures = sum(map(len, kept.values()))
    audit.captions = sum(len(example.captions) for examples in kept.values() for example in examples)
    audit.check_share(f"the data set of {', '.join(params.ingest.sources)}", params.ingest.max_set_aside)
    _check_not_empty(kept, params)

    captions = [caption for examples in kept.values() for example in examples for caption in example.captions]
    unknown = unknown_tokens(params.finetune.checkpoint, params.finetune.revision, captions)
    report = _counts(audit, kept) | {
        "captions_changed": {"count": changed.total(), "examples": _changed_examples(changed)},
        "unknown_tokens": _unknown_report(unknown, params.finetune.checkpoint),
        "near_duplicates": [
            {"set_aside": picture.first.origin, "near_to": other.first.origin} for picture, other in duplicates
        ],
        "excluded": exclusion.matches,
        "corrections": corrections.count(pictures, kept),
    }
    _write(kept, report, audit, [(picture.example(), other.example()) for picture, other in duplicates], params)
    _warn(unknown, exclusion, params)
    counts = ", ".join(f"{split} {len(kept[split]):,}" for split in SPLITS)
    return (
        f"{audit.pictures:,} pictures with {audit.captions:,} captions in {paths.DATASET} ({counts}); set aside"
        f" {len(duplicates):,} near-duplicates across splits (counts: {paths.BUILD_REPORT}; list: {paths.SET_ASIDE});"
        f"{_describe_corrections(report['corrections'])} look at {paths.DATA_PAGE}"
    )


def _merge(sources: Sequence[str], audit: Audit) -> list[_Picture]:
    """Return one entry per picture, in the order of the sources' names and their archives.

    With this order new pictures are usually last, so earlier shards stay unchanged.
    """
    merged: dict[str, _Picture] = {}
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
            merged.setdefault(record.sha256, _Picture([])).found_in.append((source, record))
    return list(merged.values())


def _exclude(pictures: list[_Picture], params: Params, audit: Audit) -> tuple[list[_Picture], Exclusion]:
    """Return the pictures without those that `ingest.exclude` names and without their near-duplicates."""
    exclusion = Exclusion(params.ingest.exclude, params.ingest.image_size, params.ingest.max_pixels)
    names = [
        (p.first.sha256, [place for _, record in p.found_in for place in (record.origin, *record.copies)])
        for p in pictures
    ]
    excluded = exclusion.find(_fingerprints(pictures), names, params.build.near_duplicate_bits)
    for index in excluded:
        _set_aside(pictures[index], "excluded", audit)
    return [picture for index, picture in enumerate(pictures) if index not in excluded], exclusion


class _Corrections:
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

    def count(self, pictures: Sequence[_Picture], kept: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
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


def _describe_corrections(counts: Mapping[str, Mapping[str, int]]) -> str:
    total = sum(count["pictures"] for count in counts.values())
    by_split = ", ".join(f"{split} {count['pictures']:,}" for split, count in counts.items())
    return f" corrected pictures: {total:,} ({by_split});" if total else ""


def _clean(
    pictures: list[_Picture], policy: Captions, corrections: _Corrections, audit: Audit
) -> tuple[list[_Picture], Counter[tuple[str, str]]]:
    """Clean all captions; return the pictures that still have one, and the captions that the policy changed.

    The changed captions are pairs (before, after) with their counts.
    """
    clean_caption = caption_cleaner(policy)
    changed: Counter[tuple[str, str]] = Counter()
    for picture in pictures:
        for source, raw in picture.raw_captions():
            caption = clean_caption(raw.text)
            if caption != clean(raw.text):
                changed[clean(raw.text), caption] += 1
            if corrections.withdraw(source, picture.first.sha256, caption):
                audit.set_aside_row(source, raw.file, raw.row, "corrected")
            elif reason := _rejection(caption, picture, policy):
                audit.set_aside_row(source, raw.file, raw.row, reason)
            else:
                picture.captions[caption] = source, raw
        if not picture.captions:
            audit.set_aside_file(picture.found_in[0][0], picture.first.origin, "no_caption_left")
    return [picture for picture in pictures if picture.captions], changed


def _rejection(caption: str, picture: _Picture, policy: Captions) -> str | None:
    """Return the reason why a cleaned caption cannot be used; None if it can."""
    words = len(caption_words(caption))
    if words < policy.min_words:
        return "too_few_words"
    # Characters are limited too: the tokenizer's run time is quadratic in the length of text without spaces.
    if words > policy.max_words or len(caption) > _MAX_CHARACTERS_PER_WORD * policy.max_words:
        return "too_many_words"
    return "same_caption" if caption in picture.captions else None


def _split(
    pictures: list[_Picture], params: Params, audit: Audit
) -> tuple[dict[str, list[Example]], list[tuple[_Picture, _Picture]]]:
    """Return the examples of each split, and the near-duplicates that were set aside with the pictures they match."""
    settings = params.build
    splits = [
        furthest_from_training(
            split_of(sha256, settings.validation, settings.test)
            for sha256 in {key for _, record in picture.found_in for key in record.split_by}
        )
        for picture in pictures
    ]
    duplicates = duplicates_across_splits(_fingerprints(pictures), splits, settings.near_duplicate_bits)
    for index in duplicates:
        _set_aside(pictures[index], "near_duplicate", audit)
    kept: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for index, (picture, split) in enumerate(zip(pictures, splits, strict=True)):
        if index not in duplicates:
            kept[split].append(picture.example())
    return kept, [(pictures[i], pictures[j]) for i, j in duplicates.items()]


def _set_aside(picture: _Picture, reason: str, audit: Audit) -> None:
    """Set aside a picture and its remaining captions (all of them if they have not been cleaned yet)."""
    audit.set_aside_file(picture.found_in[0][0], picture.first.origin, reason)
    for source, raw in picture.captions.values() if picture.captions else picture.raw_captions():
        audit.set_aside_row(source, raw.file, raw.row, "picture_set_aside")


def _fingerprints(pictures: list[_Picture]) -> Fingerprints:
    return Fingerprints.of([(int(p.first.phash, 16), bytes.fromhex(p.first.thumbnail)) for p in pictures])


def _check_not_empty(kept: Mapping[str, list[Example]], params: Params) -> None:
    fractions = {"train": 1.0, "validation": params.build.validation, "test": params.build.test}
    for split, fraction in fractions.items():
        if fraction and not kept[split]:
            total = sum(map(len, kept.values()))
            raise DataError(
                f"{paths.DATASET / split}: would be empty: {total} pictures are too few for a"
                f" build.{split if split != 'train' else 'validation and build.test'} of"
                f" {fraction if split != 'train' else params.build.validation + params.build.test:g};"
                " add pictures, or change the fractions in params.yaml"
            )


def _write(
    kept: Mapping[str, list[Example]],
    report: Mapping[str, Any],
    audit: Audit,
    duplicates: Sequence[tuple[Example, Example]],
    params: Params,
) -> None:
    """Write the splits, the report, the list of what was set aside, and the HTML page, and swap them in together."""
    readers = {name: PictureReader(paths.INGEST / name) for name in params.ingest.sources}

    def reader(example: Example) -> PictureReader:
        return readers[example.sources[0]]

    targets = (paths.DATASET, paths.BUILD_REPORT, paths.BUILD_METRICS, paths.SET_ASIDE, paths.DATA_PAGE)
    with swapped_in(*targets) as (folder, new_report, new_metrics, new_set_aside, new_page):
        for split in SPLITS:
            examples = progress_bar(kept[split], desc=f"build {split}", unit=" pictures")
            write_split(folder / split, examples, reader, last=paths.DATASET / split)
        write_json(new_report, report)
        write_json(new_metrics, _metrics(report))
        write_set_aside(new_set_aside, audit.set_aside)
        page = data_report.render(
            report, kept, audit.set_aside, duplicates, lambda example: reader(example).read(example.file_name)
        )
        new_page.write_text(page, encoding="utf-8")


def _counts(audit: Audit, kept: Mapping[str, list[Example]]) -> dict[str, Any]:
    """Return the audit of ingest and build: all raw pictures and captions are kept in a split or set aside."""
    counts = audit.report()
    return {
        "pictures": {
            "in": audit.files - audit.captions_files,
            "kept": {split: len(kept[split]) for split in kept},
            "set_aside": counts["files"]["set_aside"],
        },
        "captions": {
            "in": audit.rows,
            "kept": {split: sum(len(e.captions) for e in kept[split]) for split in kept},
            "set_aside": counts["rows"]["set_aside"],
        },
        "captions_a_picture": dict(sorted(Counter(len(e.captions) for split in kept for e in kept[split]).items())),
    }


def _metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts that `dvc metrics` shows."""
    pictures, unknown = report["pictures"], report["unknown_tokens"]
    return {
        **{f"{split}_pictures": count for split, count in pictures["kept"].items()},
        "captions": sum(report["captions"]["kept"].values()),
        "set_aside": sum(pictures["set_aside"].values()),
        "unknown_tokens": unknown and unknown["share"],
    }


def _changed_examples(changed: Counter[tuple[str, str]]) -> list[dict[str, str]]:
    """Return a few changed captions, evenly spread by length and shortest first (short ones show changes best)."""
    pairs = sorted((len(before), before, after) for before, after in changed)
    step = max(1, len(pairs) // _CHANGED_CAPTIONS)
    return [{"before": before, "after": after} for _, before, after in pairs[::step][:_CHANGED_CAPTIONS]]


def _unknown_report(unknown: Unknown | None, checkpoint: str) -> dict[str, Any] | None:
    if unknown is None:
        return None
    return {
        "checkpoint": checkpoint,
        "share": round(unknown.share, 6),
        "unknown": unknown.unknown,
        "tokens": unknown.tokens,
        "most_frequent": dict(unknown.most),
    }


def _warn(unknown: Unknown | None, exclusion: Exclusion, params: Params) -> None:
    """Print what is no error but probably a mistake."""
    for entry in exclusion.without_match:
        print(f"build: params.yaml: ingest.exclude: {entry!r} is no folder and matches no picture; check it")
    if unknown and unknown.share > _MAX_UNKNOWN:
        pieces = " ".join(piece for piece, _ in unknown.most[:8])
        print(
            f"build: {unknown.share:.1%} of the caption tokens are unknown to {params.finetune.checkpoint} (most"
            f" frequent: {pieces}); if they are emoji, set build.captions.emoji to `words`; for another script, choose"
            " a checkpoint that supports it"
        )


if __name__ == "__main__":
    entrypoint.main("build", run, lock=lambda args: "build")
