from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.split import SPLITS, kept_apart, near_duplicates, split_of


def sha(k: int) -> str:
    return hashlib.sha256(str(k).encode()).hexdigest()


def test_fractions_are_met_within_sampling_error() -> None:
    splits = [split_of(sha(k), 0.1, 0.15) for k in range(20_000)]
    # three standard deviations of a binomial share
    assert abs(splits.count("validation") / 20_000 - 0.1) < 3 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(splits.count("test") / 20_000 - 0.15) < 3 * (0.15 * 0.85 / 20_000) ** 0.5


def test_zero_fractions_leave_all_for_training() -> None:
    assert {split_of(sha(k), 0.0, 0.0) for k in range(500)} == {"train"}


hashes = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=40)


@given(hashes, st.integers(0, 12), st.integers(0, 7))
def test_bands_find_every_pair_that_comparing_all_finds(values: list[int], bits: int, flips: int) -> None:
    values = values + [value ^ ((1 << flips) - 1) for value in values[:5]]  # some that are near for sure
    same = np.zeros((len(values), 8, 8, 3), dtype=np.uint8)
    splits = [SPLITS[k % 3] for k in range(len(values))]
    found = set(near_duplicates(values, same, splits, bits))
    expected = {
        (i, j)
        for i, j in combinations(range(len(values)), 2)
        if splits[i] != splits[j] and (values[i] ^ values[j]).bit_count() <= bits
    }
    assert found == expected


def test_another_colour_is_another_picture() -> None:
    thumbnails = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    thumbnails[1, 0, 0, 0] = 20
    thumbnails[2, 0, 0, 0] = 41
    assert set(near_duplicates([5, 5, 5], thumbnails, SPLITS, 4)) == {(0, 1)}


@given(
    st.lists(st.sampled_from(SPLITS), min_size=2, max_size=12),
    st.data(),
)
def test_no_near_pair_is_left_across_splits_and_the_test_split_stays(splits: list[str], data: st.DataObject) -> None:
    every = list(combinations(range(len(splits)), 2))
    pairs = data.draw(st.lists(st.sampled_from(every), unique=True))
    aside = kept_apart(splits, pairs)
    for i, j in pairs:
        if i not in aside and j not in aside:
            assert splits[i] == splits[j]
    assert all(splits[i] != "test" for i in aside)
    for i, near in aside.items():
        assert SPLITS.index(splits[i]) < SPLITS.index(splits[near])
        assert near not in aside or splits[near] == "validation"
