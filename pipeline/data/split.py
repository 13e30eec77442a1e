"""Which split a picture belongs to, and near-duplicates kept from standing on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

SPLITS = ("train", "validation", "test")

_HASH_BITS = 64
# Thumbnails of one picture saved twice (another size, another JPEG quality) differ by less than this
# (of 255) in every cell and channel; without it, a perceptual hash, which sees no colour, would take a red
# and a blue star for the same picture.
_THUMBNAIL_TOLERANCE = 20
_STEP = _THUMBNAIL_TOLERANCE + 1
_PAIRS = 2**20  # hashes compared at a time, so that memory stays small where many pictures share a band
_THUMBNAILS = 2**17  # of these, thumbnails compared at a time


def split_of(sha256: str, validation: float, test: float) -> str:
    """The split of a picture, from the SHA-256 (hexadecimal) of its raw bytes alone.

    The hash's first 64 bits, read as a fraction of 1, fall below `test`, below `test + validation`, or
    above. So more data never moves a picture, and no state needs to be kept.
    """
    place = int(sha256[:16], 16) / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def furthest_from_training(splits: Iterable[str]) -> str:
    """The one split of a picture that stands in posts of several: test before validation before train.

    So that a picture that more data shows again may leave the training, but never comes into it from the test.
    """
    return max(splits, key=SPLITS.index)


@dataclass(frozen=True)
class Prints:
    """What tells near-duplicates: of each picture its perceptual hash and its thumbnail.

    Attributes:
        hashes: `(pictures,)`, uint64.
        thumbnails: `(pictures, values)`, uint8.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray

    @classmethod
    def of(cls, pictures: Sequence[tuple[int, bytes]]) -> Prints:
        """The prints of pictures by their 64-bit perceptual hashes and the bytes of their thumbnails."""
        flat = np.frombuffer(b"".join(thumbnail for _, thumbnail in pictures), dtype=np.uint8)
        # An empty list still has thumbnails of some length.
        width = len(flat) // len(pictures) if pictures else 1
        return cls(np.array([code for code, _ in pictures], dtype=np.uint64), flat.reshape(len(pictures), width))

    def __getitem__(self, which: Sequence[int] | np.ndarray) -> Prints:
        chosen = np.asarray(which, dtype=np.int64)
        return Prints(self.hashes[chosen], self.thumbnails[chosen])

    def __len__(self) -> int:
        return len(self.hashes)


def look_alikes(pictures: Prints, others: Prints, max_bits: int) -> dict[int, int]:
    """The pictures that are nearly the same as one of the others: index -> the first of the others (its index).

    Near means: the 64-bit perceptual hashes differ in at most `max_bits` bits, and no value of the
    thumbnails by more than 20 of 255.

    Two hashes that differ in at most b bits agree on at least one of b + 1 bands of bits, so only pictures
    that share a band are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
    crawling", WWW 2007). Exact look-alikes are compared once, and only hashes whose pictures are about as light.
    """
    pictures_of, others_of = _distinct(pictures), _distinct(others)
    mine, theirs = pictures[list(pictures_of)], others[list(others_of)]
    my_light, their_light = (prints.thumbnails.mean(axis=1) for prints in (mine, theirs))
    found: dict[int, int] = {}
    edges = np.linspace(0, _HASH_BITS, max_bits + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        # Pictures that are about as light stand on the same or on neighbouring steps of lightness. (Where a key
        # overflows, more pictures share it; they are told apart below.)
        my_key, their_key = (
            ((prints.hashes >> np.uint64(low)) & mask) * np.uint64(16) + (light // _STEP).astype(np.uint64)
            for prints, light in ((mine, my_light), (theirs, their_light))
        )
        for left, right in chain(*(_equal(my_key + np.uint64(1), their_key + np.uint64(d)) for d in range(3))):
            bits = np.bitwise_count(mine.hashes[left] ^ theirs.hashes[right])
            light = np.abs(my_light[left] - their_light[right])
            close = np.flatnonzero((bits <= max_bits) & (light <= _THUMBNAIL_TOLERANCE))
            for some in range(0, len(close), _THUMBNAILS):
                i, j = (side[close[some : some + _THUMBNAILS]] for side in (left, right))
                a, b = mine.thumbnails[i], theirs.thumbnails[j]
                near = (np.maximum(a, b) - np.minimum(a, b)).max(axis=1, initial=0) <= _THUMBNAIL_TOLERANCE
                for one, other in zip(i[near].tolist(), j[near].tolist(), strict=True):
                    found[one] = min(other, found.get(one, other))
    firsts = list(others_of)
    return {
        index: firsts[found[place]]
        for place, indices in enumerate(pictures_of.values())
        if place in found
        for index in indices
    }


def _distinct(prints: Prints) -> dict[int, list[int]]:
    """The pictures that no earlier one is exactly alike: index -> all that are alike it, itself included."""
    seen: dict[tuple[int, bytes], list[int]] = {}
    for index, (code, thumbnail) in enumerate(zip(prints.hashes.tolist(), prints.thumbnails, strict=True)):
        seen.setdefault((code, thumbnail.tobytes()), []).append(index)
    return {indices[0]: indices for indices in seen.values()}


def _equal(some: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of equal values, as their indices in each array, about `_PAIRS` at a time."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], some, "left")
    counts = np.searchsorted(others[order], some, "right") - first
    ends = np.cumsum(counts)
    start = 0
    while start < len(some):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        many = counts[start:stop]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield np.repeat(np.arange(start, stop), many), order[np.repeat(first[start:stop], many) + within]
        start = stop


def kept_apart(prints: Prints, splits: Sequence[str], max_bits: int) -> dict[int, int]:
    """Which pictures to set aside so that no near pair stands in two splits: index -> the one it is near to.

    Of a pair across splits the one on the training side goes (train before validation before test), so
    that the test split is never made smaller.
    """
    aside: dict[int, int] = {}
    for low, high in (("train", "test"), ("validation", "test"), ("train", "validation")):
        mine, theirs = ([i for i, s in enumerate(splits) if s == side and i not in aside] for side in (low, high))
        for one, other in look_alikes(prints[mine], prints[theirs], max_bits).items():
            aside[mine[one]] = theirs[other]
    return aside
