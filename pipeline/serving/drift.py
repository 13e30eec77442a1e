"""Whether what the service sees has drifted from the data set: its pictures, the words of its captions, confidence.

Each complete week is compared once with the validation split, by two-sample tests of scipy:

* pictures: Kolmogorov-Smirnov on the first principal components of the encoder's features,
* words: Fisher's exact test on the share of captions that contain a word, for the most frequent words,
* confidence: Kolmogorov-Smirnov on the captions' mean log-likelihood per token.

Looking every week would raise false alarms sooner or later. So the p-values of a week are multiplied by their number
(Bonferroni), and the k-th week may use only `ALPHA / (k (k + 1))` of the total error, which sums to `ALPHA` over all
weeks: the probability that unchanged data ever raise an alarm about a version is at most `ALPHA`, however long one
looks. The weeks of each version are counted anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.data.text import caption_words
from pipeline.serving.watch import Seen

ALPHA = 0.05
LEAST_PICTURES = 30  # of a week that is compared
_COMPONENTS = 8
_WORDS = 50


@dataclass(frozen=True)
class Look:
    """The comparison of a week with the data set.

    Attributes:
        week: like `2026-W48`.
        pictures: how many different pictures the week has.
        p_pictures, p_words, p_confidence: p-values, corrected for the number of tests in the week.
        threshold: an alarm is a p-value below it.
        words: the words whose share changed most, with the shares in the data set and in the week.
        confidence: mean score and its 95 % confidence interval (Student's t).
    """

    week: str
    pictures: int
    p_pictures: float
    p_words: float
    p_confidence: float
    threshold: float
    words: list[tuple[str, float, float]]
    confidence: tuple[float, float, float]

    @property
    def alarms(self) -> list[str]:
        """What has drifted: `pictures`, `words`, `confidence`."""
        found = {"pictures": self.p_pictures, "words": self.p_words, "confidence": self.p_confidence}
        return [name for name, p in found.items() if p < self.threshold]


def looks(weeks: Mapping[str, Sequence[Seen]], reference: Sequence[Seen]) -> list[Look]:
    """Compare weeks with the reference, in order of time; weeks with few pictures are left out.

    Args:
        weeks: the pictures of each complete week, captioned by one version.
        reference: pictures of the data set that the version was not trained on, captioned by it.
    """
    found: list[Look] = []
    for week in sorted(weeks):
        if len(weeks[week]) >= LEAST_PICTURES:
            found.append(_look(week, weeks[week], reference, len(found) + 1))
    return found


def _look(week: str, seen: Sequence[Seen], reference: Sequence[Seen], number: int) -> Look:
    pictures = _p_pictures(_features(reference), _features(seen))
    words, p_words = _words(reference, seen)
    scores, before = np.array([one.score for one in seen]), np.array([one.score for one in reference])
    confidence = [float(stats.ks_2samp(before, scores).pvalue)]
    tests = len(pictures) + len(p_words) + len(confidence)
    error = stats.sem(scores) if np.ptp(scores) else 0.0
    half = float(error * stats.t.ppf(0.975, len(scores) - 1))
    mean = float(scores.mean())
    return Look(
        week=week,
        pictures=len(seen),
        p_pictures=min(1.0, tests * min(pictures)),
        p_words=min(1.0, tests * min(p_words, default=1.0)),
        p_confidence=min(1.0, tests * confidence[0]),
        threshold=ALPHA / (number * (number + 1)),
        words=words,
        confidence=(mean, mean - half, mean + half),
    )


def _features(seen: Sequence[Seen]) -> np.ndarray:
    return np.stack([one.features for one in seen]).astype(np.float64)


def _p_pictures(reference: np.ndarray, seen: np.ndarray) -> list[float]:
    """Return a p-value for each principal component of all features together, `(pictures, hidden)`.

    Components of the reference alone would fit its noise, and fresh pictures of the same kind would look different.
    """
    together = np.concatenate([reference, seen])
    _, _, axes = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)
    before, now = reference @ axes[:_COMPONENTS].T, seen @ axes[:_COMPONENTS].T
    return [float(stats.ks_2samp(before[:, k], now[:, k]).pvalue) for k in range(before.shape[1])]


def _words(reference: Sequence[Seen], seen: Sequence[Seen]) -> tuple[list[tuple[str, float, float]], list[float]]:
    """Return the words whose share changed most, and a p-value for each frequent word.

    Words are counted once per caption: the captions are independent, the words within one are not.
    """
    before, now = (Counter(w for one in group for w in set(caption_words(one.caption))) for group in (reference, seen))
    frequent = [word for word, _ in (before + now).most_common(_WORDS)]
    n, m = len(reference), len(seen)
    p = [
        float(stats.fisher_exact([[before[word], n - before[word]], [now[word], m - now[word]]]).pvalue)
        for word in frequent
    ]
    order = sorted(range(len(frequent)), key=lambda k: p[k])[:5]
    return [(frequent[k], before[frequent[k]] / n, now[frequent[k]] / m) for k in order], p
