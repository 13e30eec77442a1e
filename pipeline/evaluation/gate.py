"""Whether a newly trained model takes the place of the one in use: one rule, for two models on the same pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config.sections.promote import Promote
from pipeline.evaluation.bootstrap import differences
from pipeline.evaluation.metrics import Statistics

RESAMPLES = 10_000


@dataclass(frozen=True)
class Gain:
    """By how much one model's score exceeds another's on the same pictures.

    Attributes:
        value: over all of them.
        low, high: between these it lies, with the confidence of the rule.
        differing: pictures whose scores differ.
    """

    value: float
    low: float
    high: float
    differing: int


def gain(challenger: Statistics, champion: Statistics, rule: Promote) -> Gain:
    """The challenger's gain in the rule's metric, by a paired bootstrap over the pictures."""
    found = differences(champion, challenger, rule.seed, RESAMPLES, rule.confidence)[rule.metric]
    differ = challenger.each()[rule.metric] != champion.each()[rule.metric]
    return Gain(found.value, found.low, found.high, int(np.count_nonzero(differ)))


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
    span = f"{found.value:+.3f} {rule.metric}, {rule.confidence:.0%} interval {found.low:+.3f} to {found.high:+.3f}"
    outcome = f"{'' if better else 'not '}surely more than promote.least_gain ({rule.least_gain:g})"
    if found.high < 0 and not better:
        outcome = "worse"
    reasons.append(f"{span} on {pictures} test pictures that neither was trained on: {outcome}")
    return Verdict(varied and tells and better, reasons)
