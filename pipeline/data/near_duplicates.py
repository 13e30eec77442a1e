"""Find near-duplicate pictures by perceptual hash and thumbnail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

_HASH_BITS = 64
# Thumbnails of one picture saved twice (at another size or JPEG quality) differ by less than this (of 255) in every
# cell and channel. Without this check a perceptual hash, which ignores colour, would match a red and a blue star.
_THUMBNAIL_TOLERANCE = 20
_LIGHTNESS_STEP = _THUMBNAIL_TOLERANCE + 1
_PAIRS_PER_CHUNK = 2**20  # bounds memory if many pictures share a band of hash bits
_THUMBNAILS_PER_CHUNK = 2**17


@dataclass(frozen=True)
class Fingerprints:
    """The perceptual hashes and thumbnails of pictures.

    Attributes:
        hashes: `(pictures,)`, uint64.
        thumbnails: `(pictures, values)`, uint8.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray

    @classmethod
    def of(cls, pictures: Sequence[tuple[int, bytes]]) -> Fingerprints:
        """Return the fingerprints of pictures, each given as its 64-bit perceptual hash and its thumbnail's bytes."""
        flat = np.frombuffer(b"".join(thumbnail for _, thumbnail in pictures), dtype=np.uint8)
        width = len(flat) // len(pictures) if pictures else 1  # an array with no rows needs a width too
        return cls(np.array([phash for phash, _ in pictures], dtype=np.uint64), flat.reshape(len(pictures), width))

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Fingerprints:
        chosen = np.asarray(indices, dtype=np.int64)
        return Fingerprints(self.hashes[chosen], self.thumbnails[chosen])

    def __len__(self) -> int:
        return len(self.hashes)


def find_near_duplicates(pictures: Fingerprints, others: Fingerprints, max_bits: int) -> dict[int, int]:
    """Return the pictures that are near-duplicates of one of `others`: index -> lowest index in `others`.

    Two pictures are near-duplicates if their 64-bit perceptual hashes differ in at most `max_bits` bits and no value of
    their thumbnails differs by more than 20 (of 255).

    Two hashes that differ in at most b bits agree on at least one of b + 1 bands of bits, so only pictures that share a
    band are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007). Pictures with
    identical fingerprints are compared once, and only pictures of similar lightness are compared at all.
    """
    groups, other_groups = _group_identical(pictures), _group_identical(others)
    left, right = pictures[list(groups)], others[list(other_groups)]
    left_lightness, right_lightness = (prints.thumbnails.mean(axis=1) for prints in (left, right))
    nearest: dict[int, int] = {}
    edges = np.linspace(0, _HASH_BITS, max_bits + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        # Pictures of similar lightness are on the same or on adjacent steps of lightness. (If a key overflows, more
        # pictures share it; the exact comparison below tells them apart.)
        left_keys, right_keys = (
            ((prints.hashes >> np.uint64(low)) & mask) * np.uint64(16)
            + (lightness // _LIGHTNESS_STEP).astype(np.uint64)
            for prints, lightness in ((left, left_lightness), (right, right_lightness))
        )
        adjacent = (_equal_pairs(left_keys + np.uint64(1), right_keys + np.uint64(step)) for step in range(3))
        for i, j in chain(*adjacent):
            bits = np.bitwise_count(left.hashes[i] ^ right.hashes[j])
            lightness = np.abs(left_lightness[i] - right_lightness[j])
            close = np.flatnonzero((bits <= max_bits) & (lightness <= _THUMBNAIL_TOLERANCE))
            for one, other in _similar_thumbnails(left, right, i[close], j[close]):
                nearest[one] = min(other, nearest.get(one, other))
    firsts = list(other_groups)
    return {
        index: firsts[nearest[place]]
        for place, indices in enumerate(groups.values())
        if place in nearest
        for index in indices
    }


def _group_identical(prints: Fingerprints) -> dict[int, list[int]]:
    """Group pictures with identical fingerprints: first index -> all indices of the group."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    for index, (phash, thumbnail) in enumerate(zip(prints.hashes.tolist(), prints.thumbnails, strict=True)):
        groups.setdefault((phash, thumbnail.tobytes()), []).append(index)
    return {indices[0]: indices for indices in groups.values()}


def _similar_thumbnails(
    left: Fingerprints, right: Fingerprints, i: np.ndarray, j: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield the pairs (`i[k]`, `j[k]`) whose thumbnails are within the tolerance."""
    for start in range(0, len(i), _THUMBNAILS_PER_CHUNK):
        chunk = slice(start, start + _THUMBNAILS_PER_CHUNK)
        a, b = left.thumbnails[i[chunk]], right.thumbnails[j[chunk]]
        similar = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1, initial=0) <= _THUMBNAIL_TOLERANCE
        yield from zip(i[chunk][similar].tolist(), j[chunk][similar].tolist(), strict=True)


def _equal_pairs(values: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of equal values as indices into each array, about `_PAIRS_PER_CHUNK` pairs at a time."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], values, "left")
    counts = np.searchsorted(others[order], values, "right") - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(values):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_PER_CHUNK, "right")))
        chunk = counts[start:stop]
        offsets = np.arange(chunk.sum()) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        yield np.repeat(np.arange(start, stop), chunk), order[np.repeat(first[start:stop], chunk) + offsets]
        start = stop
