"""Whether a newly trained model takes the place of the one in use: one rule, for two models on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.params import Promote

_RESAMPLES = 10_000
_CHUNK = 500  # resamples in memory at a time


@dataclass(frozen=True)
class Gain:
    """By how much one model's mean score exceeds another's on the same pictures.

    Attributes:
        mean: of the differences.
        low, high: between these the mean lies with the confidence that was asked for.
        differing: pictures of which the two scores differ.
    """

    mean: float
    low: float
    high: float
    differing: int


def gain(challenger: Sequence[float], champion: Sequence[float], confidence: float, seed: int) -> Gain:
    """The paired bootstrap of the mean difference over pictures (Efron 1979; Koehn 2004 for translations).

    Args:
        challenger: a score of each picture.
        champion: of the same pictures in the same order.
        confidence: of the percentile interval, from 0 to 1, two-sided.
        seed: of the resampling.
    """
    differences = np.asarray(challenger, dtype=float) - np.asarray(champion, dtype=float)
    rng, count = np.random.default_rng(seed), len(differences)
    means = [differences[rng.integers(0, count, (_CHUNK, count))].mean(axis=1) for _ in range(0, _RESAMPLES, _CHUNK)]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gain(float(differences.mean()), float(low), float(high), int(np.count_nonzero(differences)))


@dataclass(frozen=True)
class Verdict:
    """What the gate says, with its reasons in words."""

    promoted: bool
    reasons: list[str]


def verdict(rule: Promote, distinct: float, pictures: int, found: Gain | None) -> Verdict:
    """Apply the rule.

    The challenger is promoted where enough pictures tell the two apart, the interval of its gain lies above
    `least_gain`, and it says enough different things. Where there is no champion, only the last counts.

    Args:
        rule: the `promote` section of params.yaml.
        distinct: the part of the challenger's captions that differ from each other.
        pictures: that both were compared on.
        found: its gain over the champion; None where there is no champion.
    """
    reasons = []
    varied = distinct >= rule.least_distinct
    if not varied:
        reasons.append(
            f"only {distinct:.1%} of its captions differ from each other, fewer than promote.least_distinct"
            f" ({rule.least_distinct:.1%})"
        )
    if found is None:
        return Verdict(varied, reasons or ["there is no champion yet"])
    tells = found.differing >= rule.least_pictures
    if not tells:
        reasons.append(
            f"only {found.differing} of the {pictures} test pictures that neither was trained on tell the two apart,"
            f" fewer than promote.least_pictures ({rule.least_pictures})"
        )
    better = found.low > rule.least_gain
    span = f"{found.mean:+.3f} {rule.metric}, {rule.confidence:.0%} interval {found.low:+.3f} to {found.high:+.3f}"
    reasons.append(
        f"{span} on {pictures} test pictures that neither was trained on: {'' if better else 'not '}surely more than"
        f" promote.least_gain ({rule.least_gain:g})"
    )
    return Verdict(varied and tells and better, reasons)
