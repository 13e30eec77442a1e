"""All pairs of 64-bit hashes that differ in a few bits, without comparing every pair.

The 64 bits are cut into `m` blocks. Two hashes that differ in at most `b` bits agree on at least `m - b` blocks, so for
each choice of `m - b` blocks the hashes are sorted by those blocks, and only hashes that agree on them are compared
(Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007, section 3). More blocks take more
sorting and leave fewer pairs: `m` is chosen by the number of hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np

_BITS = 64
_PER_CHUNK = 2**20  # hashes or pairs at a time, which bounds memory
_LOW_HALF = np.uint64(2**32 - 1)
_SCRAMBLER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing; 2**64 / golden ratio
# Seconds per table, hash and compared pair, measured on one core of an AMD Zen 4. Only their ratios matter.
_TABLE_SECONDS, _HASH_SECONDS, _PAIR_SECONDS = 1e-4, 6e-8, 2e-8

Pairs = tuple[np.ndarray, np.ndarray]


def near_pairs(hashes: np.ndarray, others: np.ndarray, max_bits: int) -> Iterator[Pairs]:
    """Yield all pairs that differ in at most `max_bits` bits, each once, in chunks of at most about a million.

    Beside the arguments this takes 8 bytes for each of `others`, and some 100 MB.

    Args:
        hashes: `(hashes,)`, uint64, at most 2**32.
        others: the same.
        max_bits: 0 to 64.

    Yields:
        indices into `hashes` and into `others`, `(pairs,)` int64 each.
    """
    if not len(hashes) or not len(others):
        return
    blocks = _block_masks(_block_count(len(hashes), len(others), max_bits))
    for kept in combinations(range(len(blocks)), len(blocks) - max_bits):
        mask = np.uint64(sum(blocks[k] for k in kept))
        # A pair can agree on several choices of blocks. It is yielded for the first one only, where all blocks that are
        # left out before the last kept one differ.
        differing = [np.uint64(blocks[k]) for k in range(max(kept, default=0)) if k not in kept]
        for i, j in _equal_pairs(hashes, others, mask):
            differences = hashes[i] ^ others[j]
            near = np.flatnonzero((np.bitwise_count(differences) <= max_bits) & (differences & mask == 0))
            for block in differing:
                near = near[differences[near] & block != 0]
            if len(near):
                yield i[near], j[near]


def expanded(counts: np.ndarray) -> Iterator[Pairs]:
    """Yield row numbers and offsets, `range(counts[row])` for each row, about a million at a time.

    >>> [(rows.tolist(), offsets.tolist()) for rows, offsets in expanded(np.array([2, 0, 1]))]
    [([0, 0, 2], [0, 1, 0])]
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PER_CHUNK, "right")))
        chunk = counts[start:stop]
        offsets = np.arange(chunk.sum()) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        yield np.repeat(np.arange(start, stop), chunk), offsets
        start = stop


def _block_count(hashes: int, others: int, max_bits: int) -> int:
    """Return the number of blocks with which the search is likely to be fastest; `max_bits` compares every pair."""

    def seconds(blocks: int) -> float:
        key_bits = min(32.0, _BITS * (blocks - max_bits) / max(blocks, 1))
        pairs = hashes * others / 2**key_bits
        return comb(blocks, max_bits) * (_TABLE_SECONDS + _HASH_SECONDS * (hashes + others) + _PAIR_SECONDS * pairs)

    return min(range(max_bits, min(2 * max_bits + 1, _BITS) + 1), key=seconds)


def _block_masks(blocks: int) -> list[int]:
    edges = [_BITS * k // max(blocks, 1) for k in range(blocks + 1)]
    return [(1 << high) - (1 << low) for low, high in pairwise(edges)]


def _equal_pairs(hashes: np.ndarray, others: np.ndarray, mask: np.uint64) -> Iterator[Pairs]:
    """Yield all pairs that agree on the bits of `mask`, and perhaps a few others, about a million at a time."""
    known = _keyed(others, mask, 0)
    known.sort()
    for start in range(0, len(hashes), _PER_CHUNK):
        wanted = _keyed(hashes[start : start + _PER_CHUNK], mask, start)
        wanted.sort()  # neighbours in `wanted` look up neighbours in `known`: far fewer cache misses
        first = np.searchsorted(known, wanted & ~_LOW_HALF)
        found = np.flatnonzero((known[np.minimum(first, len(known) - 1)] ^ wanted) <= _LOW_HALF)
        wanted, first = wanted[found], first[found]
        counts = np.searchsorted(known, wanted | _LOW_HALF, "right") - first
        for rows, offsets in expanded(counts):
            i, j = wanted[rows] & _LOW_HALF, known[first[rows] + offsets] & _LOW_HALF
            yield i.astype(np.int64), j.astype(np.int64)


def _keyed(hashes: np.ndarray, mask: np.uint64, first: int) -> np.ndarray:
    """Return a 32-bit key of the masked bits (high half) and the index (low half), so that sorting needs no argsort."""
    keys = (hashes & mask) * _SCRAMBLER
    keys &= ~_LOW_HALF
    keys |= np.arange(first, first + len(hashes), dtype=np.uint64)
    return keys
