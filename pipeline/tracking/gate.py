"""The promotion rule: whether a newly trained model (challenger) replaces the champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config.errors import ConfigError
from pipeline.config.sections.promote import Promote
from pipeline.evaluation.bootstrap import differences
from pipeline.evaluation.metrics.registry import score_names
from pipeline.evaluation.metrics.scoring import Statistics
from pipeline.tracking.comparison import Comparison

RESAMPLES = 10_000


def check_metric(rule: Promote) -> None:
    """Check that the rule's metric is registered.

    Raises:
        ConfigError: it is not.
    """
    if rule.metric not in score_names():
        raise ConfigError(
            f"params.yaml: promote.metric: found {rule.metric!r}; choose one of {', '.join(score_names())}"
        )


@dataclass(frozen=True)
class Gain:
    """The challenger's score minus the champion's on the same pictures.

    Attributes:
        value: the gain over all pictures.
        low, high: its confidence interval.
        differing: number of pictures with different scores.
    """

    value: float
    low: float
    high: float
    differing: int


def gain(challenger: Statistics, champion: Statistics, rule: Promote) -> Gain:
    """Return the challenger's gain in the rule's metric, with a paired bootstrap over the pictures."""
    difference = differences(champion, challenger, rule.seed, RESAMPLES, rule.confidence)[rule.metric]
    differ = challenger.each()[rule.metric] != champion.each()[rule.metric]
    return Gain(difference.value, difference.low, difference.high, int(np.count_nonzero(differ)))


@dataclass(frozen=True)
class Verdict:
    """The decision, and the reasons in words.

    Attributes:
        promoted: whether the challenger passes.
        reasons: in words.
        borderline: whether the challenger does not pass, but may be better than the champion.
    """

    promoted: bool
    reasons: list[str]
    borderline: bool = False


def verdict(
    rule: Promote, distinct: float, pictures: int, gained: Gain | None, evaluated: Sequence[Comparison] = ()
) -> Verdict:
    """Apply the rule.

    The challenger is promoted if enough pictures have different scores, the interval of its gain lies above
    `least_gain`, enough of its captions are distinct, and it is worse neither than before fine-tuning nor than the
    naive answers. Without a champion, only the last two conditions apply. It is borderline if only the gain is in
    doubt: too few pictures differ, or `least_gain` lies within the interval.

    Args:
        rule: the `promote` section of params.yaml.
        distinct: share of distinct captions of the challenger.
        pictures: number of pictures that both were compared on.
        gained: the gain over the champion; None if there is no champion.
        evaluated: the challenger's comparisons on its own test split; none if they are unknown.
    """
    worse = [str(comparison) for comparison in evaluated if comparison.is_worse]
    reasons = list(worse)
    varied = distinct >= rule.least_distinct
    if not varied:
        reasons.append(
            f"only {distinct:.1%} of its captions are distinct, below promote.least_distinct"
            f" ({rule.least_distinct:.1%})"
        )
    if gained is None:
        return Verdict(varied and not worse, reasons or ["there is no champion yet"])
    enough = gained.differing >= rule.least_pictures
    if not enough:
        reasons.append(
            f"the two score differently on only {gained.differing} of the {pictures} test pictures that neither was"
            f" trained on, below promote.least_pictures ({rule.least_pictures})"
        )
    better = gained.low > rule.least_gain
    span = f"{gained.value:+.3f} {rule.metric}, {rule.confidence:.0%} interval {gained.low:+.3f} to {gained.high:+.3f}"
    outcome = f"{'' if better else 'not '}surely more than promote.least_gain ({rule.least_gain:g})"
    if gained.high < 0 and not better:
        outcome = "worse"
    reasons.append(f"{span} on {pictures} test pictures that neither was trained on: {outcome}")
    passes = varied and enough and better and not worse
    borderline = varied and not worse and not passes and gained.high > rule.least_gain
    return Verdict(passes, reasons, borderline)
