"""How sure scores are: percentile bootstraps over pictures (Efron and Tibshirani, 1993; paired: Koehn, EMNLP 2004).

A resample draws as many pictures as there are, with replacement. BLEU is computed anew from what its pictures add up
to; ROUGE-L and CIDEr are means over them, with the weights of n-grams that the whole set of references gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics import NAMES, Floats, Integers, Statistics, resampled

RESAMPLES = 1000
LEVEL = 0.95
FEW = 100
"""Pictures, of fewer of which scores say little: CIDEr's weights need more, and intervals are wide."""

_AT_ONCE = 1_000_000  # numbers drawn at a time, to bound the memory


@dataclass(frozen=True)
class Difference:
    """How far system b's score is above a's.

    Attributes:
        value: b's score less a's, over all pictures.
        low, high: the interval in which it lies, with the confidence that was asked for.
        better: the fraction of resamples in which b scores higher than a; resamples of equal scores count half.
    """

    value: float
    low: float
    high: float
    better: float


def intervals(corpus: Statistics, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """The interval in which each score lies with 95 % confidence, by its name in `NAMES`."""
    scores = np.concatenate([resampled(corpus, times) for times in _draws(len(corpus.lengths), seed, resamples)])
    low, high = _ends(scores)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(NAMES)}


def differences(
    a: Statistics, b: Statistics, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Difference]:
    """How far b's scores are above a's, by their names in `NAMES`; each resample scores both on the same pictures.

    Args:
        a, b: of two systems on the same pictures in the same order, with the same references.
        seed: of the drawing; with the same one other systems are compared on the same resamples.
        resamples: how many.
        level: the confidence of the intervals, two-sided, from 0 to 1.

    Raises:
        ValueError: the numbers of pictures differ.
    """
    if len(a.lengths) != len(b.lengths):
        raise ValueError(f"a has {len(a.lengths)} pictures and b {len(b.lengths)}; compare them on the same ones")
    drawn = np.concatenate(
        [resampled(b, times) - resampled(a, times) for times in _draws(len(a.lengths), seed, resamples)]
    )
    low, high = _ends(drawn, level)
    better = (drawn > 0).mean(axis=0) + (drawn == 0).mean(axis=0) / 2
    of_a, of_b = a.scores(), b.scores()
    return {
        name: Difference(of_b[name] - of_a[name], float(low[i]), float(high[i]), float(better[i]))
        for i, name in enumerate(NAMES)
    }


def warning(pictures: int) -> str | None:
    """What to tell where there are so few pictures that their scores say little; None where there are enough."""
    if pictures >= FEW:
        return None
    one = "CIDEr is always 0 with one picture; " if pictures == 1 else ""
    many = "1 picture is" if pictures == 1 else f"{pictures} pictures are"
    return f"{many} too few for scores to say much: {one}score {FEW} or more, and compare nothing by this"


def _draws(pictures: int, seed: int, resamples: int) -> Iterator[Integers]:
    """(some, pictures) how often each picture is drawn in each of the next resamples."""
    rng = np.random.default_rng(seed)
    some = max(1, min(resamples, _AT_ONCE // pictures))
    for first in range(0, resamples, some):
        count = min(some, resamples - first)
        drawn = rng.integers(0, pictures, (count, pictures)) + np.arange(count)[:, None] * pictures
        yield np.bincount(drawn.ravel(), minlength=count * pictures).reshape(count, pictures)


def _ends(values: Floats, level: float = LEVEL) -> Floats:
    ends: Floats = np.quantile(values, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return ends
