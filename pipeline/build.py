"""Build the data set: data/ingest/* -> data/dataset/{train,validation,test}.

Captions are cleaned, the same picture from several sources becomes one, near-duplicates are kept from
standing on both sides of a split, and every picture falls into a split that more data never changes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline import paths, stage
from pipeline.data.captions import clean
from pipeline.data.pictures import THUMBNAIL
from pipeline.data.records import Example, Ingested, PictureReader, read_ingested, write_split
from pipeline.data.split import SPLITS, kept_apart, near_duplicates, split_of
from pipeline.errors import DataError
from pipeline.files import swapped_in, write_json
from pipeline.params import Params


@dataclass
class _Merged:
    """A picture with what every source has for it."""

    first: Ingested
    found_in: list[tuple[str, Ingested]] = field(default_factory=list)


def run(params: Params, args: argparse.Namespace) -> str:
    """Build the data set of all sources; returns the last line to print."""
    settings = params.build
    ingested = {name: list(read_ingested(paths.INGEST / name)) for name in params.ingest.sources}
    merged = _merge(ingested)
    examples = [_example(picture) for picture in merged]
    splits = [split_of(example.sha256, settings.validation, settings.test) for example in examples]
    aside = _near_duplicates_across(merged, splits, settings.near_duplicate_bits)
    kept = {split: [e for i, e in enumerate(examples) if splits[i] == split and i not in aside] for split in SPLITS}
    _check_not_empty(kept, params)

    report = _report(ingested, examples, kept, aside)
    readers = {name: PictureReader(paths.INGEST / name) for name in ingested}
    with swapped_in(paths.DATASET, paths.BUILD_REPORT) as (folder, new_report):
        for split in SPLITS:
            bar = tqdm(kept[split], desc=f"build {split}", unit=" pictures", disable=None)
            write_split(folder / split, bar, lambda e: readers[e.sources[0]].read(e.file_name))
        write_json(new_report, report)
    counts = ", ".join(f"{split} {len(kept[split]):,}" for split in SPLITS)
    return (
        f"{sum(map(len, kept.values())):,} pictures in {paths.DATASET} ({counts}); set aside {len(aside):,}"
        f" near-duplicates across splits (details: {paths.BUILD_REPORT})"
    )


def _merge(ingested: dict[str, list[Ingested]]) -> list[_Merged]:
    """One entry a picture, whichever sources it is in, in an order that follows from its content alone."""
    merged: dict[str, _Merged] = {}
    for name, records in ingested.items():
        for record in records:
            merged.setdefault(record.sha256, _Merged(record)).found_in.append((name, record))
    return [merged[sha256] for sha256 in sorted(merged)]


def _example(picture: _Merged) -> Example:
    rows = [row for _, record in picture.found_in for row in record.captions]
    return Example(
        file_name=picture.first.file_name,
        captions=list(dict.fromkeys(clean(row.text) for row in rows)),
        sha256=picture.first.sha256,
        sources=[name for name, _ in picture.found_in],
        origins=[record.origin for _, record in picture.found_in],
    )


def _near_duplicates_across(merged: list[_Merged], splits: list[str], max_bits: int) -> dict[int, int]:
    thumbnails = b"".join(bytes.fromhex(picture.first.thumbnail) for picture in merged)
    pairs = near_duplicates(
        [int(picture.first.phash, 16) for picture in merged],
        np.frombuffer(thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3),
        splits,
        max_bits,
    )
    return kept_apart(splits, list(pairs))


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


def _report(
    ingested: dict[str, list[Ingested]],
    examples: list[Example],
    kept: dict[str, list[Example]],
    aside: dict[int, int],
) -> dict[str, Any]:
    """The account: every picture and caption that comes in is kept, merged, or set aside."""
    pictures_in = sum(map(len, ingested.values()))
    captions_in = sum(len(record.captions) for records in ingested.values() for record in records)
    captions_kept = {split: sum(len(e.captions) for e in kept[split]) for split in kept}
    with_pictures = sum(len(examples[i].captions) for i in aside)
    report: dict[str, Any] = {
        "pictures": {
            "in": pictures_in,
            "kept": {split: len(kept[split]) for split in kept},
            "set_aside": {"in_several_sources": pictures_in - len(examples), "near_duplicate": len(aside)},
        },
        "captions": {
            "in": captions_in,
            "kept": captions_kept,
            "set_aside": {
                "same_caption": captions_in - sum(len(e.captions) for e in examples),
                "near_duplicate": with_pictures,
            },
        },
        "captions_a_picture": dict(sorted(Counter(len(e.captions) for split in kept for e in kept[split]).items())),
        "near_duplicates": [
            {"set_aside": examples[i].origins[0], "near_to": examples[j].origins[0]} for i, j in sorted(aside.items())
        ],
    }
    for kind, account in report.items():
        if kind in ("pictures", "captions"):
            counted = sum(account["kept"].values()) + sum(account["set_aside"].values())
            assert account["in"] == counted, f"of {kind}, {account['in']} came in and {counted} are accounted for"
    return report


if __name__ == "__main__":
    stage.main("build", run, lock=lambda args: "build")
