"""Build the data set: data/ingest/* -> data/dataset/{train,validation,test}.

Build cleans captions, merges the same picture from several sources, removes near-duplicates that would span two splits,
leaves out excluded pictures, and assigns every picture to a split; a picture that was once in validation or test never
goes to train. It continues the audit of ingest: every raw file and row is accounted for up to the training data.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.config.sections.build import Build, Captions
from pipeline.data import report as data_report
from pipeline.data.audit import Audit, write_set_aside
from pipeline.data.dataset import Example, PictureReader, write_split
from pipeline.data.exclusion import Exclusion
from pipeline.data.held_out import HeldOut, read_held_out
from pipeline.data.merged import CorrectedCaptions, MergedPicture, merge
from pipeline.data.near_duplicates import Fingerprints
from pipeline.data.split import HELD_OUT, SPLITS, assign_splits, duplicates_across_splits, own_splits
from pipeline.data.text import caption_cleaner, caption_words, clean
from pipeline.models.vocabulary import TokenCounts, count_tokens
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import swapped_in, write_json
from pipeline.runtime.progress import progress_bar

_MANY_UNKNOWN = 0.02  # share of unknown words above which a model misses what people wrote
_MAX_CHARACTERS_PER_WORD = 50  # a caption with more is not text
_CHANGED_CAPTIONS = 20  # examples in the report


class _Outputs(NamedTuple):
    """Where the outputs are written before they are swapped in together."""

    dataset: Path
    report: Path
    metrics: Path
    set_aside: Path
    page: Path


def run(params: Params, args: argparse.Namespace) -> str:
    """Build the data set from all sources; return the last line to print."""
    audit = Audit()
    # Entered first because it restores the last data set, which has the memory of the splits, after a killed run.
    targets = (paths.DATASET, paths.BUILD_REPORT, paths.BUILD_METRICS, paths.SET_ASIDE, paths.DATA_PAGE)
    with swapped_in(*targets) as places:
        pictures = merge(params.ingest.sources, audit)
        pictures, exclusion = _exclude(pictures, params, audit)
        corrections = CorrectedCaptions(params.ingest.sources, params.build.captions)
        pictures, changed = _clean(pictures, params.build.captions, corrections, audit)
        settings = params.build
        held_out = read_held_out(
            paths.DATASET, {"splits": settings.splits, "validation": settings.validation, "test": settings.test}
        )
        own = _own_splits(pictures, settings)
        kept, duplicates = _split(pictures, own, held_out, params, audit)
        audit.pictures = sum(map(len, kept.values()))
        audit.captions = sum(len(example.captions) for examples in kept.values() for example in examples)
        with audit.listed_if_stopped("build"):
            audit.check_share(f"the data set of {', '.join(params.ingest.sources)}", params.ingest.max_set_aside)
            _check_not_empty(kept, params)

        captions = {split: [text for example in kept[split] for text in example.captions] for split in SPLITS}
        tokens = count_tokens(params.finetune, list(chain.from_iterable(captions.values())), captions["train"])
        if tokens:
            tokens.check(params.build.max_unknown_words, params.build.max_cut_captions)
        report = _counts(audit, kept) | {
            "own_splits": {source: dict(sorted(Counter(of.values()).items())) for source, of in own.items()},
            "captions_changed": {"count": changed.total(), "examples": _changed_examples(changed)},
            "unknown_tokens": tokens and tokens.unknown_report(),
            "cut_captions": tokens and tokens.cut_report(),
            "near_duplicates": [
                {"set_aside": picture.first.origin, "near_to": other.first.origin} for picture, other in duplicates
            ],
            "excluded": exclusion.matches,
            "corrections": corrections.count(pictures, kept),
        }
        near_duplicates = [(picture.example(), other.example()) for picture, other in duplicates]
        _write(_Outputs(*places), kept, held_out, report, audit, near_duplicates, params)
    _warn(tokens, exclusion, held_out, own)
    counts = ", ".join(f"{split} {len(kept[split]):,}" for split in SPLITS)
    return (
        f"{audit.pictures:,} pictures with {audit.captions:,} captions in {paths.DATASET} ({counts}); set aside"
        f" {len(duplicates):,} near-duplicates across splits (counts: {paths.BUILD_REPORT}; list: {paths.SET_ASIDE});"
        f"{_describe_corrections(report['corrections'])} look at {paths.DATA_PAGE}"
    )


def _exclude(pictures: list[MergedPicture], params: Params, audit: Audit) -> tuple[list[MergedPicture], Exclusion]:
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


def _clean(
    pictures: list[MergedPicture], policy: Captions, corrections: CorrectedCaptions, audit: Audit
) -> tuple[list[MergedPicture], Counter[tuple[str, str]]]:
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
                audit.set_aside_row(source, raw.file, raw.row, "corrected", picture.first.origin)
            elif reason := _rejection(caption, picture, policy):
                audit.set_aside_row(source, raw.file, raw.row, reason, picture.first.origin)
            else:
                picture.captions[caption] = source, raw
        if not picture.captions:
            audit.set_aside_file(picture.found_in[0][0], picture.first.origin, "no_caption_left")
    return [picture for picture in pictures if picture.captions], changed


def _rejection(caption: str, picture: MergedPicture, policy: Captions) -> str | None:
    """Return the reason why a cleaned caption cannot be used; None if it can."""
    words = len(caption_words(caption))
    if words < policy.min_words:
        return "too_few_words"
    # Characters are limited too: the tokenizer's run time is quadratic in the length of text without spaces.
    if words > policy.max_words or len(caption) > _MAX_CHARACTERS_PER_WORD * policy.max_words:
        return "too_many_words"
    return "same_caption" if caption in picture.captions else None


def _own_splits(pictures: list[MergedPicture], settings: Build) -> dict[str, dict[str, str]]:
    """Return the splits of the sources that have their own: source -> SHA-256 -> split."""
    if settings.splits == "hash":
        return {}
    by_source: dict[str, dict[str, list[str]]] = {}
    for picture in pictures:
        for source, record in picture.found_in:
            by_source.setdefault(source, {})[record.sha256] = record.splits
    found = {source: own_splits(of, settings.validation, settings.test) for source, of in by_source.items()}
    return {source: splits for source, splits in found.items() if splits}


def _split(
    pictures: list[MergedPicture], own: Mapping[str, Mapping[str, str]], held_out: HeldOut, params: Params, audit: Audit
) -> tuple[dict[str, list[Example]], list[tuple[MergedPicture, MergedPicture]]]:
    """Return the examples of each split, and the near-duplicates that were set aside with the pictures they match.

    Adds the pictures of validation and test to `held_out`; `own` is the result of `_own_splits`.
    """
    settings = params.build
    posts = {
        p.first.sha256: frozenset(key for source, r in p.found_in if source not in own for key in r.split_by)
        for p in pictures
    }
    given = {
        p.first.sha256: [own[source][p.first.sha256] for source, _ in p.found_in if source in own] for p in pictures
    }
    remembered = held_out.splits_of((picture.first for picture in pictures), settings.near_duplicate_bits)
    assigned = assign_splits(posts, remembered, settings.validation, settings.test, given)
    splits = list(assigned.values())
    duplicates = duplicates_across_splits(_fingerprints(pictures), splits, settings.near_duplicate_bits)
    for index in duplicates:
        _set_aside(pictures[index], "near_duplicate", audit)
    kept: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for index, (picture, split) in enumerate(zip(pictures, splits, strict=True)):
        if index not in duplicates:
            kept[split].append(picture.example())
            if split in HELD_OUT:
                held_out.add(picture.first, split)
    return kept, [(pictures[i], pictures[j]) for i, j in duplicates.items()]


def _set_aside(picture: MergedPicture, reason: str, audit: Audit) -> None:
    """Set aside a picture and its remaining captions (all of them if they have not been cleaned yet)."""
    audit.set_aside_file(picture.found_in[0][0], picture.first.origin, reason)
    for source, raw in picture.captions.values() if picture.captions else picture.raw_captions():
        audit.set_aside_row(source, raw.file, raw.row, "picture_set_aside", picture.first.origin)


def _fingerprints(pictures: list[MergedPicture]) -> Fingerprints:
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
    outputs: _Outputs,
    kept: Mapping[str, list[Example]],
    held_out: HeldOut,
    report: Mapping[str, Any],
    audit: Audit,
    duplicates: Sequence[tuple[Example, Example]],
    params: Params,
) -> None:
    """Write the splits with their memory, the report, the list of what was set aside, and the HTML page."""
    readers = {name: PictureReader(paths.INGEST / name) for name in params.ingest.sources}

    def reader(example: Example) -> PictureReader:
        return readers[example.sources[0]]

    for split in SPLITS:
        examples = progress_bar(kept[split], desc=f"build {split}", unit=" pictures")
        write_split(outputs.dataset / split, examples, reader, last=paths.DATASET / split)
    held_out.write(outputs.dataset)
    write_json(outputs.report, report)
    write_json(outputs.metrics, _metrics(report))
    write_set_aside(outputs.set_aside, audit.set_aside)
    page = data_report.render(
        report, kept, audit.set_aside, duplicates, lambda example: reader(example).read(example.file_name)
    )
    outputs.page.write_text(page, encoding="utf-8")


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


def _describe_corrections(counts: Mapping[str, Mapping[str, int]]) -> str:
    total = sum(count["pictures"] for count in counts.values())
    by_split = ", ".join(f"{split} {count['pictures']:,}" for split, count in counts.items())
    return f" corrected pictures: {total:,} ({by_split});" if total else ""


def _changed_examples(changed: Counter[tuple[str, str]]) -> list[dict[str, str]]:
    """Return a few changed captions, evenly spread by length and shortest first (short ones show changes best)."""
    pairs = sorted((len(before), before, after) for before, after in changed)
    step = max(1, len(pairs) // _CHANGED_CAPTIONS)
    return [{"before": before, "after": after} for _, before, after in pairs[::step][:_CHANGED_CAPTIONS]]


def _warn(
    tokens: TokenCounts | None, exclusion: Exclusion, held_out: HeldOut, own: Mapping[str, Mapping[str, str]]
) -> None:
    """Print what is no error but should be known."""
    for source, splits in own.items():
        counts = Counter(splits.values())
        shown = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
        stay = sum(splits[sha256] == "train" and sha256 in held_out.splits for sha256 in splits)
        print(
            f"build: {source}: its own splits are used ({shown}); set build.splits to `hash` to ignore them"
            + (f"; {stay:,} of its train pictures stay in validation or test, where they were before" if stay else "")
        )
    if held_out.params_before:
        print(
            f"build: the params of the splits changed from {held_out.params_before} to {dict(held_out.params)}: all"
            " pictures are assigned anew, so a model trained before may have seen today's test pictures"
        )
    for entry in exclusion.without_match:
        print(f"build: params.yaml: ingest.exclude: {entry!r} is no folder and matches no picture; check it")
    if tokens and tokens.unknown_share > _MANY_UNKNOWN:
        print(
            f"build: {tokens.describe_unknown()}; add them with finetune.new_tokens; if they are emoji, you can"
            " also set build.captions.emoji to `words`; for another script, choose a checkpoint that supports it"
        )
    if tokens and tokens.cut:
        print(
            f"build: {tokens.describe_cut()}; raise finetune.max_tokens, or lower build.captions.max_words"
            f" (examples: {paths.DATA_PAGE})"
        )


if __name__ == "__main__":
    entrypoint.main("build", run, lock=lambda args: "build")
