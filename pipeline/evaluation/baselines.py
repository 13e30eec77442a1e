"""Baselines without a model: a model should score higher than these."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from pipeline.data.dataset import Example
from pipeline.evaluation.consensus import Utility

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


def consensus(
    utility: Utility, captions: Sequence[Sequence[str]], nearest_pictures: Iterable[Sequence[int]]
) -> list[str]:
    """Return per picture the caption of its nearest pictures that agrees best with the captions of the others.

    Agreement is the mean CIDEr-D. Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning".

    Args:
        utility: compares captions.
        captions: of each training picture.
        nearest_pictures: for each picture the indices of its nearest training pictures, the nearest first.
    """
    chosen = []
    for row in nearest_pictures:
        texts = [text for i in row for text in captions[i]]
        picture = np.repeat(np.arange(len(row)), [len(captions[i]) for i in row])
        others = picture[:, None] != picture[None, :]
        sums = (utility.between(texts, texts) * others).sum(axis=1)
        means = sums / np.maximum(others.sum(axis=1), 1)
        chosen.append(texts[int(means.round(9).argmax())])
    return chosen


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / 255
