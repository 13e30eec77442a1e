"""How often people changed a version's captions, week by week."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.data.sources.corrections import Correction
from pipeline.serving.edit_rate import edit_rates


def correction(action: Any, at: str, version: int | None = 1, model: str | None = "toy") -> Correction:
    return Correction(
        id="1", at=at, who="ann", action=action, sha256="0" * 64, said="a car", model=model, version=version
    )


def test_the_rate_of_a_week_has_wilsons_interval() -> None:
    actions = ["edit"] * 2 + ["reject"] + ["accept"] * 7
    (found,) = edit_rates([correction(action, "2026-03-04T10:00:00+00:00") for action in actions], "toy", 1)
    assert (found.week, found.judged, found.changed, found.rate) == ("2026-W10", 10, 3, 0.3)
    # Wilson (1927): (p + z²/2n -+ z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.3, n = 10, z = 1.96.
    assert (found.low, found.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)


def test_only_judgements_of_this_version_count_each_in_its_week_of_utc() -> None:
    found = [
        correction("edit", "2026-03-02T00:30:00+01:00"),  # Sunday in UTC: the week before
        correction("accept", "2026-03-02T00:30:00+00:00"),
        correction("add", "2026-03-02T00:30:00+00:00"),
        correction("undo", "2026-03-02T00:30:00+00:00"),
        correction("edit", "2026-03-02T00:30:00+00:00", version=2),
        correction("edit", "2026-03-02T00:30:00+00:00", version=None, model=None),
        correction("edit", "2026-03-02T00:30:00+00:00", model="another"),
        correction("edit", "on Monday"),
    ]
    rates = edit_rates(found, "toy", 1)
    assert [(one.week, one.judged, one.changed) for one in rates] == [("2026-W09", 1, 1), ("2026-W10", 1, 0)]
    assert edit_rates([], "toy", 1) == []
