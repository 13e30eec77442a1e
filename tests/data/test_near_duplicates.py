from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import hamming, near_duplicates
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


def brute_force(hashes: np.ndarray, others: np.ndarray, bits: int) -> list[tuple[int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ others[None, :])
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(distances <= bits), strict=True)]


def drawn_hashes(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Return hashes without order, in few clusters, or in one block of bits, where all tables see the same pairs."""
    if kind == "random":
        return rng.integers(2**64, size=count, dtype=np.uint64)
    if kind == "low bits":
        return rng.integers(2**9, size=count, dtype=np.uint64)
    centres = rng.integers(2**64, size=3, dtype=np.uint64)[rng.integers(3, size=count)]
    for _ in range(4):
        centres ^= np.uint64(1) << rng.integers(64, size=count, dtype=np.uint64)
    return centres


@pytest.mark.parametrize("kind", ["random", "clusters", "low bits"])
@pytest.mark.parametrize("more_blocks", range(4))  # than max_bits; chosen by the number of hashes otherwise
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(0, 6), chunk=st.sampled_from([1, 50, 2**20]))
@settings(deadline=None)
def test_every_pair_of_near_hashes_is_found_once(kind: str, more_blocks: int, seed: int, bits: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    some, others = (drawn_hashes(rng, kind, int(rng.integers(90))) for _ in range(2))
    planted = some[: len(some) // 3].copy()
    for _ in range(bits):
        planted ^= np.uint64(1) << rng.integers(64, size=len(planted), dtype=np.uint64)
    others = np.concatenate([others, planted])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_block_count", lambda *sizes: bits + more_blocks)
        patch.setattr(hamming, "_PER_CHUNK", chunk)
        found = [
            (int(i), int(j))
            for firsts, seconds in hamming.near_pairs(some, others, bits)
            for i, j in zip(firsts, seconds, strict=True)
        ]
    assert sorted(found) == brute_force(some, others, bits)


def test_many_hashes_are_not_compared_pairwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty thousand against thirty thousand are 900 million pairs; 0.1 % of them are looked at."""
    rng = np.random.default_rng(0)
    some, others = (rng.integers(2**64, size=30_000, dtype=np.uint64) for _ in range(2))
    compared = 0

    def counted(*arguments: object) -> Iterator[hamming.Pairs]:
        nonlocal compared
        for i, j in equal_pairs(*arguments):
            compared += len(i)
            yield i, j

    equal_pairs = hamming._equal_pairs
    monkeypatch.setattr(hamming, "_equal_pairs", counted)
    others[:100] = some[:100] ^ np.uint64(0b1111)
    assert sum(len(i) for i, _ in hamming.near_pairs(some, others, 4)) == 100
    assert compared < 900_000


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 10, 2**16]), st.sampled_from([3, 2**17]))
def test_pictures_with_the_same_hash_and_other_thumbnails_are_told_apart(seed: int, many: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    thumbnails = rng.integers(256, size=(4, 192), dtype=np.int64)[rng.integers(4, size=80)]
    thumbnails = np.clip(thumbnails + rng.integers(-15, 16, size=(80, 1)), 0, 255)
    prints = Fingerprints(np.full(80, 7, dtype=np.uint64), thumbnails.astype(np.uint8))
    expected = {}
    for i in range(40):
        near = np.flatnonzero(np.abs(thumbnails[i] - thumbnails[40:]).max(axis=1) <= 20)
        if len(near):
            expected[i] = int(near[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_MANY_PAIRS", many)
        patch.setattr(near_duplicates, "_THUMBNAILS_PER_CHUNK", chunk)
        assert find_near_duplicates(prints[range(40)], prints[range(40, 80)], 4) == expected


def test_copies_come_directly_after_their_first_picture() -> None:
    """The order decides the rows of set_aside.csv."""
    found = find_near_duplicates(fingerprints([8, 1, 8, 1, 99, 8]), fingerprints([1, 1, 8]), 0)
    assert list(found.items()) == [(0, 2), (2, 2), (5, 2), (1, 0), (3, 0)]


def test_pictures_that_share_a_digest_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_digests", lambda prints: np.zeros(len(prints), dtype=np.uint64))
    prints = fingerprints([5, 6, 5, 6, 5], [0, 0, 90, 0, 90])
    assert near_duplicates._first_identical(prints).tolist() == [0, 1, 2, 1, 2]


def test_pictures_that_differ_in_colour_are_no_near_duplicates() -> None:
    thumbnails = np.zeros((3, 192), dtype=np.uint8)
    thumbnails[1, 0] = 20
    thumbnails[2, 0] = 41
    three = Fingerprints(np.array([5, 5, 5], dtype=np.uint64), thumbnails)
    assert find_near_duplicates(three[[1, 2]], three[[0]], 4) == {0: 0}
