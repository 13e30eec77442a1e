"""Baselines without a model: a model should score higher than these."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from pipeline.data.dataset import Example

_SIDE = 32  # pixels; pictures are compared as 32 x 32 squares
_CHUNK = 1024  # training pictures per comparison, to bound memory


def most_frequent(train: Iterable[Example]) -> str:
    """Return the most frequent training caption; ties go to the first in alphabetical order."""
    counts = Counter(caption for example in train for caption in example.captions)
    return min(counts, key=lambda caption: (-counts[caption], caption))


def nearest(train: Sequence[Example], train_pictures: Iterable[bytes], pictures: Iterable[bytes]) -> list[str]:
    """Return for each picture the first caption of the nearest training picture.

    The distance is Euclidean, between pictures resized to 32 x 32 RGB.
    """
    wanted = np.stack([_pixels(data) for data in pictures])
    best = np.full(len(wanted), np.inf)
    which = np.zeros(len(wanted), dtype=int)
    chunk: list[np.ndarray] = []

    def compare(first: int) -> None:
        known = np.stack(chunk)
        # |a - b|^2 = |a|^2 - 2ab + |b|^2; |a|^2 is the same for all b
        distance = (known**2).sum(axis=1) - 2 * wanted @ known.T
        index = distance.argmin(axis=1)
        value = distance[np.arange(len(wanted)), index]
        closer = value < best
        best[closer], which[closer] = value[closer], first + index[closer]

    start = 0
    for data in train_pictures:
        chunk.append(_pixels(data))
        if len(chunk) == _CHUNK:
            compare(start)
            start, chunk = start + len(chunk), []
    if chunk:
        compare(start)
    return [train[i].captions[0] for i in which]


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / 255
