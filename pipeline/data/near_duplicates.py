"""Find near-duplicate pictures by perceptual hash and thumbnail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.hamming import expanded, near_pairs

# Thumbnails of one picture saved twice (at another size or JPEG quality) differ by less than this (of 255) in every
# cell and channel. Without this check a perceptual hash, which ignores colour, would match a red and a blue star.
_THUMBNAIL_TOLERANCE = 20
_THUMBNAILS_PER_CHUNK = 2**17
_GLANCES = 4
_MANY_PAIRS = 2**16  # of pictures that have the same two hashes; from here on most of them are skipped


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

    No pair is missed. Pictures with identical fingerprints are compared once, and equal hashes too, so time grows with
    the number of pictures and of near hashes, but not with the square of copies. Memory beside the arguments is about
    100 bytes a picture.
    """
    if not len(pictures) or not len(others):
        return {}
    return _Search(pictures, others).run(max_bits)


class _Hashes:
    """Pictures with distinct fingerprints, grouped by hash.

    Attributes:
        first: for each picture, the index of the first one with an identical fingerprint.
        hashes: the distinct hashes, ascending.
        starts, counts: where the pictures with each hash are in `members`.
        members: the pictures with distinct fingerprints by hash, then by index.
    """

    def __init__(self, prints: Fingerprints) -> None:
        self.first = _first_identical(prints)
        distinct = np.flatnonzero(self.first == np.arange(len(prints)))
        self.members = distinct[np.argsort(prints.hashes[distinct], kind="stable")]
        self.hashes, self.starts, self.counts = np.unique(
            prints.hashes[self.members], return_index=True, return_counts=True
        )

    def of(self, number: int) -> np.ndarray:
        """Return the pictures with a hash, ascending."""
        start = self.starts[number]
        members: np.ndarray = self.members[start : start + self.counts[number]]
        return members


class _Search:
    """Finds the lowest near-duplicate in `others` of each picture.

    Attributes:
        nearest: for each picture, the lowest index in `others` found so far; `len(others)` if none.
    """

    def __init__(self, pictures: Fingerprints, others: Fingerprints) -> None:
        self._pictures, self._others = pictures, others
        # A few single values of the thumbnails tell most pairs apart: cells and channels that are far from each other.
        columns = np.linspace(0, pictures.thumbnails.shape[1] - 1, _GLANCES).astype(int)
        self._glances = [(pictures.thumbnails[:, k].copy(), others.thumbnails[:, k].copy()) for k in columns]
        self.nearest = np.full(len(pictures), len(others))

    def run(self, max_bits: int) -> dict[int, int]:
        """Return picture -> lowest near-duplicate, copies directly after their first picture."""
        left, right = _Hashes(self._pictures), _Hashes(self._others)
        for u, v in near_pairs(left.hashes, right.hashes, max_bits):
            pairs = left.counts[u] * right.counts[v]
            for k in np.flatnonzero(pairs > _MANY_PAIRS):
                self._compare_many(left.of(u[k]), right.of(v[k]))
            few = np.flatnonzero(pairs <= _MANY_PAIRS)
            u, v, pairs = u[few], v[few], pairs[few]
            for rows, offsets in expanded(pairs):
                width = right.counts[v[rows]]
                i = left.members[left.starts[u[rows]] + offsets // width]
                j = right.members[right.starts[v[rows]] + offsets % width]
                self._compare(i, j)
        copies_after_first = np.argsort(left.first, kind="stable")
        nearest = self.nearest[left.first[copies_after_first]]
        found = nearest < len(self._others)
        return dict(zip(copies_after_first[found].tolist(), nearest[found].tolist(), strict=True))

    def _compare_many(self, i: np.ndarray, j: np.ndarray) -> None:
        """Compare each of `i` with `j` (ascending), but only up to its first near-duplicate."""
        start = 0
        while start < len(j) and len(i):
            block = j[start : start + max(1, _THUMBNAILS_PER_CHUNK // len(i))]
            start += len(block)
            self._compare(np.repeat(i, len(block)), np.tile(block, len(i)))
            i = i[self.nearest[i] > block[-1]]

    def _compare(self, i: np.ndarray, j: np.ndarray) -> None:
        """Compare the pictures `i[k]` and `j[k]`, except where a lower one than `j[k]` has been found."""
        lower = j < self.nearest[i]
        i, j = i[lower], j[lower]
        for mine, theirs in self._glances:
            near = _differences(mine[i], theirs[j]) <= _THUMBNAIL_TOLERANCE
            i, j = i[near], j[near]
        for chunk in _chunks(len(i)):
            one, other = i[chunk], j[chunk]
            differences = _differences(self._pictures.thumbnails[one], self._others.thumbnails[other])
            similar = differences.max(axis=1) <= _THUMBNAIL_TOLERANCE
            np.minimum.at(self.nearest, one[similar], other[similar])


def _differences(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    differences: np.ndarray = np.maximum(some, others) - np.minimum(some, others)
    return differences


def _first_identical(prints: Fingerprints) -> np.ndarray:
    """Return for each picture the index of the first one with an identical fingerprint, `(pictures,)` int64."""
    _, firsts, numbers = np.unique(_digests(prints), return_index=True, return_inverse=True)
    first = firsts[numbers]
    different = prints.hashes != prints.hashes[first]
    for chunk in _chunks(len(prints)):
        different[chunk] |= (prints.thumbnails[chunk] != prints.thumbnails[first[chunk]]).any(axis=1)
    # Different pictures with the same digest are rare, unless somebody makes them.
    known: dict[tuple[int, bytes], int] = {}
    for index in np.flatnonzero(different).tolist():
        content = int(prints.hashes[index]), prints.thumbnails[index].tobytes()
        first[index] = known.setdefault(content, index)
    return first


def _digests(prints: Fingerprints) -> np.ndarray:
    """Return a 64-bit number for each fingerprint; different ones rarely share it."""
    words = -(-prints.thumbnails.shape[1] // 8)
    # Random odd factors: multiply-shift hashing of vectors (Dietzfelbinger, "Universal hashing and k-wise independent
    # random variables via integer arithmetic without primes", STACS 1996).
    factors = np.random.default_rng(0).integers(2**63, size=words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    digests = prints.hashes * np.uint64(0x9E3779B97F4A7C15)
    for chunk in _chunks(len(prints)):
        thumbnails = prints.thumbnails[chunk]
        padded = np.zeros((len(thumbnails), 8 * words), dtype=np.uint8)
        padded[:, : thumbnails.shape[1]] = thumbnails
        digests[chunk] += padded.view(np.uint64) @ factors
    return digests


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, _THUMBNAILS_PER_CHUNK):
        yield slice(start, start + _THUMBNAILS_PER_CHUNK)
