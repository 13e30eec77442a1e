from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.split import SPLITS, Prints, furthest_from_training, kept_apart, look_alikes, split_of


def sha(k: int) -> str:
    return hashlib.sha256(str(k).encode()).hexdigest()


def test_fractions_are_met_within_sampling_error() -> None:
    splits = [split_of(sha(k), 0.1, 0.15) for k in range(20_000)]
    # three standard deviations of a binomial share
    assert abs(splits.count("validation") / 20_000 - 0.1) < 3 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(splits.count("test") / 20_000 - 0.15) < 3 * (0.15 * 0.85 / 20_000) ** 0.5


def test_zero_fractions_leave_all_for_training() -> None:
    assert {split_of(sha(k), 0.0, 0.0) for k in range(500)} == {"train"}


def prints(hashes: list[int], thumbnails: list[int] | None = None) -> Prints:
    """Prints with these hashes, and thumbnails all of one value."""
    values = np.array(thumbnails or [0] * len(hashes), dtype=np.uint8).reshape(-1, 1)
    return Prints(np.array(hashes, dtype=np.uint64), np.repeat(values, 192, axis=1))


hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


@given(hashes, hashes, st.integers(0, 12), st.integers(0, 7), st.lists(st.sampled_from([0, 15, 30, 90]), min_size=90))
def test_bands_find_the_first_look_alike_that_comparing_all_finds(
    some: list[int], others: list[int], bits: int, flips: int, light: list[int]
) -> None:
    others = others + [value ^ ((1 << flips) - 1) for value in some[:5]] * 2  # some that are near for sure
    found = look_alikes(prints(some, light[: len(some)]), prints(others, light[-len(others) :]), bits)
    expected = {}
    for i, one in enumerate(some):
        near = [
            j
            for j, other in enumerate(others)
            if (one ^ other).bit_count() <= bits and abs(light[i] - light[len(light) - len(others) + j]) <= 20
        ]
        if near:
            expected[i] = near[0]
    assert found == expected


def test_another_colour_is_another_picture() -> None:
    thumbnails = np.zeros((3, 192), dtype=np.uint8)
    thumbnails[1, 0] = 20
    thumbnails[2, 0] = 41
    three = Prints(np.array([5, 5, 5], dtype=np.uint64), thumbnails)
    assert look_alikes(three[[1, 2]], three[[0]], 4) == {0: 0}


def test_pictures_that_all_look_alike_are_not_compared_each_with_each() -> None:
    """Forty thousand blank pages would be 400 million pairs."""
    many = prints([7] * 40_000)
    splits = ["test"] * 20_000 + ["train"] * 20_000
    assert kept_apart(many, splits, 4) == dict.fromkeys(range(20000, 40000), 0)


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from(SPLITS)), min_size=2, max_size=30), st.integers(0, 2))
def test_no_near_pair_is_left_across_splits_and_the_test_split_stays(
    pictures: list[tuple[int, str]], bits: int
) -> None:
    codes, splits = [code for code, _ in pictures], [split for _, split in pictures]
    aside = kept_apart(prints(codes), splits, bits)
    for i, j in combinations(range(len(codes)), 2):
        if i not in aside and j not in aside and (codes[i] ^ codes[j]).bit_count() <= bits:
            assert splits[i] == splits[j]
    for i, near in aside.items():
        assert SPLITS.index(splits[i]) < SPLITS.index(splits[near])
        assert (codes[i] ^ codes[near]).bit_count() <= bits
        assert near not in aside


@given(st.lists(st.sampled_from(SPLITS), min_size=1), st.lists(st.sampled_from(SPLITS)))
def test_a_picture_shown_again_never_comes_nearer_to_the_training(before: list[str], more: list[str]) -> None:
    assert SPLITS.index(furthest_from_training(before + more)) >= SPLITS.index(furthest_from_training(before))
