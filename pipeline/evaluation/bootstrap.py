"""Confidence intervals of scores: percentile bootstrap over pictures (Efron and Tibshirani, 1993; paired: Koehn, 2004).

A resample draws as many pictures as the corpus has, with replacement. BLEU is recomputed from the summed counts of its
pictures; the other metrics are means over them. CIDEr keeps the n-gram weights of the whole set of references.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics.corpus import Floats, Integers
from pipeline.evaluation.metrics.registry import score_names
from pipeline.evaluation.metrics.scoring import Statistics

RESAMPLES = 1000
LEVEL = 0.95
FEW = 100
"""Pictures; with fewer, CIDEr's weights are unreliable and intervals are wide."""

_AT_ONCE = 1_000_000  # random numbers per chunk, to bound memory


@dataclass(frozen=True)
class Difference:
    """System b's score minus system a's.

    Attributes:
        value: the difference over all pictures.
        low, high: its confidence interval.
        better: fraction of resamples in which b scores higher than a; ties count half.
    """

    value: float
    low: float
    high: float
    better: float


def intervals(corpus: Statistics, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """Return the 95 % confidence interval of each score, by its name."""
    scores = np.concatenate([corpus.resampled(times) for times in _draws(len(corpus), seed, resamples)])
    low, high = _ends(scores)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(score_names())}


def differences(
    a: Statistics, b: Statistics, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Difference]:
    """Return b's scores minus a's, by their names; each resample scores both systems on the same pictures.

    Args:
        a, b: statistics of two systems on the same pictures in the same order, with the same references.
        seed: random seed; the same seed draws the same resamples.
        resamples: number of resamples.
        level: two-sided confidence level, 0 to 1.

    Raises:
        ValueError: the numbers of pictures differ.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} pictures and b {len(b)}; compare them on the same ones")
    drawn = np.concatenate([b.resampled(times) - a.resampled(times) for times in _draws(len(a), seed, resamples)])
    low, high = _ends(drawn, level)
    better = (drawn > 0).mean(axis=0) + (drawn == 0).mean(axis=0) / 2
    of_a, of_b = a.scores(), b.scores()
    return {
        name: Difference(of_b[name] - of_a[name], float(low[i]), float(high[i]), float(better[i]))
        for i, name in enumerate(score_names())
    }


def warning(pictures: int) -> str | None:
    """Return a warning if there are too few pictures for reliable scores, else None."""
    if pictures >= FEW:
        return None
    one = "CIDEr is always 0 with one picture; " if pictures == 1 else ""
    many = "1 picture is" if pictures == 1 else f"{pictures} pictures are"
    return f"{many} too few for reliable scores: {one}score {FEW} or more before you compare models"


def _draws(pictures: int, seed: int, resamples: int) -> Iterator[Integers]:
    """Yield chunks of resamples: (resamples, pictures) how often each picture is drawn."""
    rng = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _AT_ONCE // pictures))
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        drawn = rng.integers(0, pictures, (count, pictures)) + np.arange(count)[:, None] * pictures
        yield np.bincount(drawn.ravel(), minlength=count * pictures).reshape(count, pictures)


def _ends(values: Floats, level: float = LEVEL) -> Floats:
    """Return the ends of the interval of each column, (2, scores)."""
    ends: Floats = np.quantile(values, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return ends
