from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates


def fingerprints(hashes: list[int], thumbnails: list[int] | None = None) -> Fingerprints:
    """Return fingerprints with these hashes, and thumbnails of a single value each."""
    values = np.array(thumbnails or [0] * len(hashes), dtype=np.uint8).reshape(-1, 1)
    return Fingerprints(np.array(hashes, dtype=np.uint64), np.repeat(values, 192, axis=1))


hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)


@given(hashes, hashes, st.integers(0, 12), st.integers(0, 7), st.lists(st.sampled_from([0, 15, 30, 90]), min_size=90))
def test_bands_find_the_same_first_near_duplicate_as_comparing_all_pairs(
    some: list[int], others: list[int], bits: int, flips: int, light: list[int]
) -> None:
    others = others + [value ^ ((1 << flips) - 1) for value in some[:5]] * 2  # some that are near for sure
    found = find_near_duplicates(
        fingerprints(some, light[: len(some)]), fingerprints(others, light[-len(others) :]), bits
    )
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


def test_pictures_that_differ_in_colour_are_no_near_duplicates() -> None:
    thumbnails = np.zeros((3, 192), dtype=np.uint8)
    thumbnails[1, 0] = 20
    thumbnails[2, 0] = 41
    three = Fingerprints(np.array([5, 5, 5], dtype=np.uint64), thumbnails)
    assert find_near_duplicates(three[[1, 2]], three[[0]], 4) == {0: 0}
