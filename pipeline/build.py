"""Build the data set: data/ingest/* -> data/dataset/{train,validation,test}.

Captions are cleaned, the same picture from several sources becomes one, near-duplicates are kept from
standing on both sides of a split, what is to be left out is left out, and every picture falls into a split that
more data never changes. The account of ingest goes on here, down to what is trained on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.config.sections.build import Captions
from pipeline.data import report as data_page
from pipeline.data.audit import Account, read_set_aside, write_set_aside
from pipeline.data.dataset import Example, Ingested, PictureReader, Row, read_ingested, write_split
from pipeline.data.exclusion import Exclusion
from pipeline.data.split import SPLITS, Prints, furthest_from_training, kept_apart, split_of
from pipeline.data.text import clean, cleaner, words_of
from pipeline.models.vocabulary import Unknown, unknown_tokens
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json
from pipeline.runtime.progress import progress_bar

_MOST_UNKNOWN = 0.02  # of a caption's tokens; above it a model misses what people wrote
_CHARACTERS_A_WORD = 50  # so many more than words have is no caption
_EXAMPLES = 20  # captions before and after, in the report


@dataclass
class _Picture:
    """A picture with what every source has for it; `captions` are cleaned, each with the row that it came from."""

    found_in: list[tuple[str, Ingested]]
    captions: dict[str, tuple[str, Row]] = field(default_factory=dict)

    @property
    def first(self) -> Ingested:
        return self.found_in[0][1]

    def rows(self) -> list[tuple[str, Row]]:
        return [(source, row) for source, record in self.found_in for row in record.captions]

    def example(self) -> Example:
        return Example(
            file_name=self.first.file_name,
            captions=list(self.captions),
            sha256=self.first.sha256,
            sources=[source for source, _ in self.found_in],
            origins=[record.origin for _, record in self.found_in],
        )


def run(params: Params, args: argparse.Namespace) -> str:
    """Build the data set of all sources; returns the last line to print."""
    settings, account = params.build, Account()
    pictures = _merge(params.ingest.sources, account)
    pictures, exclusion = _leave_out(pictures, params, account)
    pictures, changed = _clean(pictures, settings.captions, account)
    splits = [
        furthest_from_training(split_of(key, settings.validation, settings.test) for key in _split_keys(picture))
        for picture in pictures
    ]
    near = kept_apart(_prints(pictures), splits, settings.near_duplicate_bits)
    for index in near:
        _set_aside(pictures[index], "near_duplicate", account)
    kept = {
        split: [p.example() for i, p in enumerate(pictures) if splits[i] == split and i not in near] for split in SPLITS
    }
    account.pictures = sum(map(len, kept.values()))
    account.captions = sum(len(example.captions) for examples in kept.values() for example in examples)
    account.check_share(f"the data set of {', '.join(params.ingest.sources)}", params.ingest.max_set_aside)
    _check_not_empty(kept, params)

    captions = [caption for examples in kept.values() for example in examples for caption in example.captions]
    unknown = unknown_tokens(params.finetune.checkpoint, params.finetune.revision, captions)
    report = _report(account, kept) | {
        "captions_changed": {"count": changed.total(), "examples": _before_and_after(changed)},
        "unknown_tokens": _in_report(unknown, params.finetune.checkpoint),
        "near_duplicates": [
            {"set_aside": pictures[i].first.origin, "near_to": pictures[j].first.origin} for i, j in near.items()
        ],
        "excluded": exclusion.matches,
    }
    readers = {name: PictureReader(paths.INGEST / name) for name in params.ingest.sources}

    def reader(example: Example) -> PictureReader:
        return readers[example.sources[0]]

    def picture(example: Example) -> bytes:
        return reader(example).read(example.file_name)

    targets = (paths.DATASET, paths.BUILD_REPORT, paths.SET_ASIDE, paths.DATA_PAGE)
    with swapped_in(*targets) as (folder, new_report, new_aside, new_page):
        for split in SPLITS:
            bar = progress_bar(kept[split], desc=f"build {split}", unit=" pictures")
            write_split(folder / split, bar, reader, last=paths.DATASET / split)
        write_json(new_report, report)
        write_set_aside(new_aside, account.aside)
        pairs = [(pictures[i].example(), pictures[j].example()) for i, j in near.items()]
        new_page.write_text(data_page.render(report, kept, account.aside, pairs, picture), encoding="utf-8")
    _warn(unknown, exclusion, params)
    counts = ", ".join(f"{split} {len(kept[split]):,}" for split in SPLITS)
    return (
        f"{account.pictures:,} pictures with {account.captions:,} captions in {paths.DATASET} ({counts}); set aside"
        f" {len(near):,} near-duplicates across splits (reasons: {paths.BUILD_REPORT}; each one: {paths.SET_ASIDE});"
        f" look at {paths.DATA_PAGE}"
    )


def _merge(sources: Sequence[str], account: Account) -> list[_Picture]:
    """One entry a picture, whichever sources it is in, in the order of the sources' names and of their archives.

    So what is new in an archive mostly stands at the end, and the shards before it stay what they are.
    """
    merged: dict[str, _Picture] = {}
    for source in sorted(sources):
        report = paths.INGEST_REPORTS / f"{source}.json"
        if not report.is_file():
            raise DataError(f"{report}: not found; run `dvc repro`, which ingests every source first")
        counts = read_json(report)
        account.files += counts["files"]["in"]
        account.caption_files += counts["files"]["captions_files"]
        account.rows += counts["rows"]["in"]
        account.aside += read_set_aside(paths.INGEST / source / "set_aside.csv")
        for record in read_ingested(paths.INGEST / source):
            if record.sha256 in merged:
                account.set_aside_file(source, record.origin, "in_several_sources")
            merged.setdefault(record.sha256, _Picture([])).found_in.append((source, record))
    return list(merged.values())


def _leave_out(pictures: list[_Picture], params: Params, account: Account) -> tuple[list[_Picture], Exclusion]:
    """Without the pictures that `ingest.exclude` names, and without those that are nearly the same as one."""
    exclusion = Exclusion(params.ingest.exclude, params.ingest.image_size, params.ingest.max_pixels)
    for index in exclusion.matching(
        _prints(pictures),
        [
            (p.first.sha256, [place for _, record in p.found_in for place in (record.origin, *record.copies)])
            for p in pictures
        ],
        params.build.near_duplicate_bits,
    ):
        _set_aside(pictures[index], "excluded", account)
        pictures[index].found_in = []
    return [picture for picture in pictures if picture.found_in], exclusion


def _clean(
    pictures: list[_Picture], policy: Captions, account: Account
) -> tuple[list[_Picture], Counter[tuple[str, str]]]:
    """The pictures that have captions left once these are cleaned, and the captions that the rules changed."""
    apply = cleaner(policy)
    changed: Counter[tuple[str, str]] = Counter()
    for picture in pictures:
        for source, row in picture.rows():
            caption = apply(row.text)
            if caption != clean(row.text):
                changed[clean(row.text), caption] += 1
            if reason := _wrong_with(caption, picture, policy):
                account.set_aside_row(source, row.file, row.row, reason)
            else:
                picture.captions[caption] = source, row
        if not picture.captions:
            account.set_aside_file(picture.found_in[0][0], picture.first.origin, "no_caption_left")
    return [picture for picture in pictures if picture.captions], changed


def _wrong_with(caption: str, picture: _Picture, policy: Captions) -> str | None:
    words = len(words_of(caption))
    if words < policy.min_words:
        return "too_few_words"
    # Not only words: the tokenizer's time grows with the square of what holds no space.
    if words > policy.max_words or len(caption) > _CHARACTERS_A_WORD * policy.max_words:
        return "too_many_words"
    return "same_caption" if caption in picture.captions else None


def _set_aside(picture: _Picture, reason: str, account: Account) -> None:
    """Set aside a picture, and the captions that it still has (all that came, if they were not cleaned yet)."""
    account.set_aside_file(picture.found_in[0][0], picture.first.origin, reason)
    for source, row in picture.captions.values() if picture.captions else picture.rows():
        account.set_aside_row(source, row.file, row.row, "picture_set_aside")


def _split_keys(picture: _Picture) -> set[str]:
    return {key for _, record in picture.found_in for key in record.split_by}


def _prints(pictures: list[_Picture]) -> Prints:
    return Prints.of([(int(p.first.phash, 16), bytes.fromhex(p.first.thumbnail)) for p in pictures])


def _check_not_empty(kept: dict[str, list[Example]], params: Params) -> None:
    wanted = {"train": 1.0, "validation": params.build.validation, "test": params.build.test}
    for split, fraction in wanted.items():
        if fraction and not kept[split]:
            total = sum(map(len, kept.values()))
            raise DataError(
                f"{paths.DATASET / split}: would be empty: {total} pictures are too few for a"
                f" build.{split if split != 'train' else 'validation and build.test'} of"
                f" {fraction if split != 'train' else params.build.validation + params.build.test:g};"
                " bring more pictures or change the fractions in params.yaml"
            )


def _report(account: Account, kept: dict[str, list[Example]]) -> dict[str, Any]:
    """The account over ingest and build: what came in with the raw data is kept in a split or set aside."""
    counts = account.report()
    return {
        "pictures": {
            "in": account.files - account.caption_files,
            "kept": {split: len(kept[split]) for split in kept},
            "set_aside": counts["files"]["set_aside"],
        },
        "captions": {
            "in": account.rows,
            "kept": {split: sum(len(e.captions) for e in kept[split]) for split in kept},
            "set_aside": counts["rows"]["set_aside"],
        },
        "captions_a_picture": dict(sorted(Counter(len(e.captions) for split in kept for e in kept[split]).items())),
    }


def _before_and_after(changed: Counter[tuple[str, str]]) -> list[dict[str, str]]:
    """A few captions that the rules changed, spread over all of them; the shorter show more clearly what was done."""
    pairs = sorted((len(before), before, after) for before, after in changed)
    step = max(1, len(pairs) // _EXAMPLES)
    return [{"before": before, "after": after} for _, before, after in pairs[::step][:_EXAMPLES]]


def _in_report(unknown: Unknown | None, checkpoint: str) -> dict[str, Any] | None:
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
    """Say what does no harm now but is hardly meant."""
    for entry in exclusion.without_match:
        print(f"build: params.yaml: ingest.exclude: {entry!r} is no folder, and no picture of the sources; check it")
    if unknown and unknown.share > _MOST_UNKNOWN:
        some = " ".join(piece for piece, _ in unknown.most[:8])
        print(
            f"build: {unknown.share:.1%} of the captions' tokens are unknown to {params.finetune.checkpoint} (most of"
            f" all {some}); where these are emoji, set build.captions.emoji to `words`; for another script, take a"
            " checkpoint that knows it"
        )


if __name__ == "__main__":
    entrypoint.main("build", run, lock=lambda args: "build")
