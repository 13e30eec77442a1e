"""Our tokenizer compared with the Java tokenizer that coco-caption runs."""

from __future__ import annotations

import csv
import json
import random
import re

import pytest

from pipeline.evaluation.ptb.tokens import ptb_tokenize
from tests.conftest import SHARED
from tests.evaluation import jar
from tests.evaluation.mutations import mutated, random_pieces

MUTATED, RANDOM = 60_000, 40_000
OWN = [
    "a small red boat left of a big blue lighthouse on the beach",
    "Look what I found at home: a green cup! #nofilter",
]


def on_one_line(captions: list[str]) -> list[str]:
    """Return the distinct captions without line separators, which the Java tokenizer takes for the end of a caption."""
    return sorted({re.sub("[\n\r\v\f\u2028\u2029]", " ", caption) for caption in captions})


def real() -> list[str]:
    """Return all captions in ../shared/data; none without that folder."""
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
    """Return the share of captions that both tokenizers split into the same words."""
    pairs = zip(captions, jar.tokenized(captions), strict=True)
    unequal = [(caption, ptb_tokenize(caption), words) for caption, words in pairs if ptb_tokenize(caption) != words]
    print(f"{len(unequal)} of {len(captions):,} differ: {unequal[:3]}")  # `pytest -rP` shows it
    return 1 - len(unequal) / len(captions)


@pytest.mark.java
@pytest.mark.real
def test_all_real_captions_are_split_into_the_same_words() -> None:
    captions = real()
    assert len(captions) > 20_000
    assert share_equal(captions) == 1


@pytest.mark.java
def test_at_least_999_of_1000_mutated_captions_are_split_into_the_same_words() -> None:
    rng = random.Random(1)
    base = real() or OWN
    assert share_equal(on_one_line([mutated(rng.choice(base), rng) for _ in range(MUTATED)])) >= 0.999


@pytest.mark.java
def test_at_least_999_of_1000_texts_without_spaces_are_split_into_the_same_words() -> None:
    rng = random.Random(2)
    assert share_equal(on_one_line([random_pieces(rng) for _ in range(RANDOM)])) >= 0.999


@pytest.mark.java
@pytest.mark.real
def test_all_captions_in_one_file_as_in_coco_caption_are_split_into_the_same_words() -> None:
    """There, the tokens of a caption that ends in "vitamin C." depend on whether the next begins with "The"."""
    captions = real()
    assert jar.tokenized(captions, apart=False) == [ptb_tokenize(caption) for caption in captions]
