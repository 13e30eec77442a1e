"""Ours beside the jar that coco-caption runs."""

from __future__ import annotations

import csv
import json
import random
import re

import pytest

from pipeline.evaluation.ptb.tokens import ptb_tokenize
from tests.conftest import SHARED
from tests.evaluation import jar
from tests.evaluation.mutations import mutated, soup

MUTATED, SOUPS = 60_000, 40_000
OWN = [
    "a small red boat left of a big blue lighthouse on the beach",
    "Look what I found at home: a green cup! #nofilter",
]


def on_one_line(captions: list[str]) -> list[str]:
    """Each once, as coco-caption would have to be given them."""
    return sorted({re.sub("[\n\r\v\f\u2028\u2029]", " ", caption) for caption in captions})


def real() -> list[str]:
    """All captions in ../shared/data."""
    if not SHARED.is_dir():
        return []
    found = []
    for file, column in (("flickr8k_500/captions.txt", "caption"), ("instagram/captions_csv.csv", "Caption")):
        with (SHARED / file).open(encoding="utf-8", newline="") as table:
            found += [row[column] for row in csv.DictReader(table)]
    folder = SHARED / "metric_oracle" / "coco_val2014_fakecap"
    for name in ("gts.json", "res.json"):
        found += [caption for captions in json.loads((folder / name).read_text()).values() for caption in captions]
    results = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
    return on_one_line(found + [result["caption"] for result in results])


def share_equal(captions: list[str]) -> float:
    pairs = zip(captions, jar.tokenized(captions), strict=True)
    unequal = [(caption, ptb_tokenize(caption), words) for caption, words in pairs if ptb_tokenize(caption) != words]
    print(f"{len(unequal)} of {len(captions):,} differ: {unequal[:3]}")  # `pytest -rP` shows it
    return 1 - len(unequal) / len(captions)


@pytest.mark.java
@pytest.mark.real
def test_all_real_captions_become_the_same_words() -> None:
    captions = real()
    assert len(captions) > 20_000
    assert share_equal(captions) == 1


@pytest.mark.java
def test_of_mutated_captions_at_least_999_in_1000_become_the_same_words() -> None:
    rng = random.Random(1)
    base = real() or OWN
    assert share_equal(on_one_line([mutated(rng.choice(base), rng) for _ in range(MUTATED)])) >= 0.999


@pytest.mark.java
def test_of_pieces_without_spaces_at_least_999_in_1000_become_the_same_words() -> None:
    rng = random.Random(2)
    assert share_equal(on_one_line([soup(rng) for _ in range(SOUPS)])) >= 0.999


@pytest.mark.java
@pytest.mark.real
def test_coco_captions_own_way_gives_the_same_where_no_caption_ends_as_the_next_goes_on() -> None:
    """It lets a caption that ends in "vitamin C." see whether the next begins with "The"."""
    captions = real()
    assert jar.tokenized(captions, apart=False) == [ptb_tokenize(caption) for caption in captions]
