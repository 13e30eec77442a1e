"""Which split a picture belongs to, and which near-duplicates to leave out so that none spans two splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates

SPLITS = ("train", "validation", "test")


def split_of(sha256: str, validation: float, test: float) -> str:
    """Return the split of a picture, which depends only on the SHA-256 (hexadecimal) of its raw bytes.

    The first 64 bits of the hash, read as a fraction of 1, fall below `test`, below `test + validation`, or above. So
    new data never moves a picture, and no state has to be kept.
    """
    fraction = int(sha256[:16], 16) / 2**64
    if fraction < test:
        return "test"
    return "validation" if fraction < test + validation else "train"


def furthest_from_training(splits: Iterable[str]) -> str:
    """Return the split of a picture that belongs to posts of several splits: test before validation before train.

    So new data may move a picture out of train, but never from test into train.
    """
    return max(splits, key=SPLITS.index)


def duplicates_across_splits(fingerprints: Fingerprints, splits: Sequence[str], max_bits: int) -> dict[int, int]:
    """Return the pictures to leave out so that no near-duplicates span two splits: index -> its near-duplicate's index.

    The picture on the training side is left out (train before validation before test), so the test split never shrinks.

    Args:
        fingerprints: of all pictures.
        splits: the split of each picture.
        max_bits: see `find_near_duplicates`.
    """
    left_out: dict[int, int] = {}
    for low, high in (("train", "test"), ("validation", "test"), ("train", "validation")):
        lower, higher = (
            [i for i, split in enumerate(splits) if split == side and i not in left_out] for side in (low, high)
        )
        for one, other in find_near_duplicates(fingerprints[lower], fingerprints[higher], max_bits).items():
            left_out[lower[one]] = higher[other]
    return left_out
