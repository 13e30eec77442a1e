"""Which split a picture belongs to, and near-duplicates kept from standing on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

SPLITS = ("train", "validation", "test")

_HASH_BITS = 64
# Thumbnails of one picture saved twice (another size, another JPEG quality) differ by less than this
# (of 255) in every cell and channel; without it, a perceptual hash, which sees no colour, would take a red
# and a blue star for the same picture.
_THUMBNAIL_TOLERANCE = 20


def split_of(sha256: str, validation: float, test: float) -> str:
    """The split of a picture, from the SHA-256 (hexadecimal) of its raw bytes alone.

    The hash's first 64 bits, read as a fraction of 1, fall below `test`, below `test + validation`, or
    above. So more data never moves a picture, and no state needs to be kept.
    """
    place = int(sha256[:16], 16) / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def near_duplicates(
    hashes: Sequence[int], thumbnails: np.ndarray, splits: Sequence[str], max_bits: int
) -> Iterator[tuple[int, int]]:
    """Pairs `(i, j)`, `i < j`, of pictures in different splits that are nearly the same.

    Near means: the 64-bit perceptual hashes differ in at most `max_bits` bits, and no cell of the
    thumbnails by more than 20 of 255.

    Args:
        hashes: a perceptual hash a picture.
        thumbnails: `(pictures, ...)`, uint8.
        splits: a split a picture.
        max_bits: of the 64.

    Two hashes that differ in at most b bits agree on at least one of b + 1 bands of bits, so only pictures
    that share a band are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
    crawling", WWW 2007).
    """
    codes = np.array(hashes, dtype=np.uint64)
    side = np.array([SPLITS.index(split) for split in splits])
    flat = thumbnails.reshape(len(codes), -1).astype(np.int16)
    edges = np.linspace(0, _HASH_BITS, max_bits + 2).astype(int)
    seen: set[tuple[int, int]] = set()
    for low, high in pairwise(edges):
        buckets = defaultdict(list)
        mask = (1 << int(high - low)) - 1
        for index, code in enumerate(hashes):
            buckets[(code >> int(low)) & mask].append(index)
        for bucket in buckets.values():
            members = np.array(bucket)
            for k, first in enumerate(bucket[:-1]):
                others = members[k + 1 :]
                others = others[side[others] != side[first]]
                others = others[np.bitwise_count(codes[others] ^ codes[first]) <= max_bits]
                near = np.abs(flat[others] - flat[first]).max(axis=1, initial=0) <= _THUMBNAIL_TOLERANCE
                for other in others[near]:
                    if (pair := (first, int(other))) not in seen:
                        seen.add(pair)
                        yield pair


def kept_apart(splits: Sequence[str], pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Which pictures to set aside so that no near pair stands in two splits: index -> the one it is near to.

    Of a pair across splits the one on the training side goes (train before validation before test), so
    that the test split is never made smaller.
    """
    aside: dict[int, int] = {}
    for low, high in (("train", "test"), ("validation", "test"), ("train", "validation")):
        for first, second in pairs:
            for mine, other in ((first, second), (second, first)):
                if (splits[mine], splits[other]) == (low, high) and mine not in aside and other not in aside:
                    aside[mine] = other
    return aside
