"""Which split a picture belongs to, and which near-duplicates to leave out so that none spans two splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates

SPLITS = ("train", "validation", "test")
HELD_OUT = SPLITS[1:]
_LEFT_OUT = -1  # is in no split


def split_of(sha256: str, validation: float, test: float) -> str:
    """Return the split that the SHA-256 (hexadecimal) of a picture's raw bytes gives.

    The first 64 bits of the hash, read as a fraction of 1, fall below `test`, below `test + validation`, or above.
    """
    fraction = int(sha256[:16], 16) / 2**64
    if fraction < test:
        return "test"
    return "validation" if fraction < test + validation else "train"


def furthest_from_training(splits: Iterable[str]) -> str:
    """Return the split of a picture for which there are several: test before validation before train."""
    return max(splits, key=SPLITS.index)


def own_splits(pictures: Mapping[str, Sequence[str]], validation: float, test: float) -> dict[str, str] | None:
    """Return the split of each picture of a source by the source's own splits: SHA-256 -> split.

    A source has splits of its own if each picture has one, some are in train, and some in validation or test. If it has
    no validation or no test split, the pictures that `split_of` gives that split are taken from its train split.

    Args:
        pictures: SHA-256 -> the picture's splits in the source, if any.
        validation, test: fractions, see `split_of`.

    Returns:
        None if the source has no splits of its own.
    """
    if not all(pictures.values()):
        return None
    splits = {sha256: furthest_from_training(own) for sha256, own in pictures.items()}
    found = set(splits.values())
    if "train" not in found or len(found) == 1:
        return None
    for sha256, split in splits.items():
        wanted = split_of(sha256, validation, test)
        if split == "train" and wanted not in found:
            splits[sha256] = wanted
    return splits


def assign_splits(
    pictures: Mapping[str, frozenset[str]],
    remembered: Mapping[str, str],
    validation: float,
    test: float,
    given: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:
    """Return the split of each picture: SHA-256 -> split.

    A post has the split of its key, or that of a remembered picture which only this post shows, so that the pictures of
    a post stay together. A picture has the furthest split (see `furthest_from_training`) of its posts and of its own
    memory. So nothing that happens to posts or sources moves a remembered picture to train.

    Args:
        pictures: SHA-256 -> the keys of the posts that show the picture: the SHA-256 of each post's first picture, or
            its own if it stands alone. Posts of sources with their own splits do not count.
        remembered: SHA-256 -> the split of pictures that were in validation or test before.
        validation, test: fractions, see `split_of`.
        given: SHA-256 -> the picture's split in each source that has its own splits.
    """
    given = given or {}
    posts = {key: split_of(key, validation, test) for keys in pictures.values() for key in keys}
    for sha256, keys in pictures.items():
        if sha256 in remembered and len(keys) == 1:
            (key,) = keys
            posts[key] = furthest_from_training([posts[key], remembered[sha256]])
    return {
        sha256: furthest_from_training(
            [*(posts[key] for key in keys), *given.get(sha256, ()), remembered.get(sha256, "train")]
        )
        for sha256, keys in pictures.items()
    }


def duplicates_across_splits(fingerprints: Fingerprints, splits: Sequence[str], max_bits: int) -> dict[int, int]:
    """Return the pictures to leave out so that no near-duplicates span two splits: index -> its near-duplicate's index.

    The picture on the training side is left out (train before validation before test), so the test split never shrinks.

    Args:
        fingerprints: of all pictures.
        splits: the split of each picture.
        max_bits: see `find_near_duplicates`.
    """
    left_out: dict[int, int] = {}
    side_of = np.fromiter(map(SPLITS.index, splits), dtype=np.int8, count=len(splits))
    for low, high in (("train", "test"), ("validation", "test"), ("train", "validation")):
        lower, higher = (np.flatnonzero(side_of == SPLITS.index(side)) for side in (low, high))
        found = find_near_duplicates(fingerprints[lower], fingerprints[higher], max_bits)
        for one, other in found.items():
            left_out[int(lower[one])] = int(higher[other])
        side_of[lower[list(found)]] = _LEFT_OUT
    return left_out
