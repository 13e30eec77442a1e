from __future__ import annotations

import hashlib
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.split import SPLITS, duplicates_across_splits, furthest_from_training, split_of
from tests.data.test_near_duplicates import fingerprints


def sha(k: int) -> str:
    return hashlib.sha256(str(k).encode()).hexdigest()


def test_splits_match_the_fractions_within_sampling_error() -> None:
    splits = [split_of(sha(k), 0.1, 0.15) for k in range(20_000)]
    # three standard deviations of a binomial share
    assert abs(splits.count("validation") / 20_000 - 0.1) < 3 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(splits.count("test") / 20_000 - 0.15) < 3 * (0.15 * 0.85 / 20_000) ** 0.5


def test_zero_fractions_put_everything_into_train() -> None:
    assert {split_of(sha(k), 0.0, 0.0) for k in range(500)} == {"train"}


def test_identical_pictures_are_not_compared_pairwise() -> None:
    """Forty thousand blank pages have 400 million pairs."""
    many = fingerprints([7] * 40_000)
    splits = ["test"] * 20_000 + ["train"] * 20_000
    assert duplicates_across_splits(many, splits, 4) == dict.fromkeys(range(20000, 40000), 0)


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from(SPLITS)), min_size=2, max_size=30), st.integers(0, 2))
def test_no_near_duplicates_span_two_splits_and_test_keeps_its_pictures(
    pictures: list[tuple[int, str]], bits: int
) -> None:
    codes, splits = [code for code, _ in pictures], [split for _, split in pictures]
    aside = duplicates_across_splits(fingerprints(codes), splits, bits)
    for i, j in combinations(range(len(codes)), 2):
        if i not in aside and j not in aside and (codes[i] ^ codes[j]).bit_count() <= bits:
            assert splits[i] == splits[j]
    for i, near in aside.items():
        assert SPLITS.index(splits[i]) < SPLITS.index(splits[near])
        assert (codes[i] ^ codes[near]).bit_count() <= bits
        assert near not in aside


@given(st.lists(st.sampled_from(SPLITS), min_size=1), st.lists(st.sampled_from(SPLITS)))
def test_more_posts_never_move_a_picture_towards_train(before: list[str], more: list[str]) -> None:
    assert SPLITS.index(furthest_from_training(before + more)) >= SPLITS.index(furthest_from_training(before))
