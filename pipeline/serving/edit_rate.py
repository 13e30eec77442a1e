"""How often people changed a version's captions, week by week, with an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from scipy import stats

from pipeline.data.sources.corrections import Correction
from pipeline.serving.watch import week_of


@dataclass(frozen=True)
class EditRate:
    """What people did with a version's captions in a week.

    Attributes:
        week: ISO week (UTC) like `2026-W48`.
        judged: how many captions were accepted, edited or rejected.
        changed: how many of these were edited or rejected.
        rate: `changed / judged`.
        low, high: its 95 % confidence interval (Wilson's score interval).
    """

    week: str
    judged: int
    changed: int
    rate: float
    low: float
    high: float


def edit_rates(found: Iterable[Correction], model: str, version: int) -> list[EditRate]:
    """Return the rate of each week in which people judged captions of the version, in order of time.

    Args:
        found: the corrections that count.
        model: name of the registered model.
        version: its version; captions of others are left out.
    """
    judged: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for one in found:
        if (one.model, one.version) == (model, version) and one.action in ("accept", "edit", "reject"):
            with suppress(ValueError):  # a file that people changed by hand
                week = week_of(datetime.fromisoformat(one.at).astimezone(UTC))
                judged[week] += 1
                changed[week] += one.action != "accept"
    rates = []
    for week in sorted(judged):
        interval = stats.binomtest(changed[week], judged[week]).proportion_ci(method="wilson")
        rate = changed[week] / judged[week]
        rates.append(EditRate(week, judged[week], changed[week], rate, float(interval.low), float(interval.high)))
    return rates
