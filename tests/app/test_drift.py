"""The table of drift on the page *Models*, from the report of `image-captioning watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import models
from pipeline.commands.watch import REPORT
from pipeline.runtime.atomic_files import write_json
from tests.app.conftest import Service
from tests.app.test_pages import NASTY, ROWS, opened, shown
from tests.conftest import set_params


def week(name: str, *alarms: str) -> dict[str, Any]:
    return {
        "week": name,
        "pictures": 40,
        "p_pictures": 0.0001234,
        "p_words": 1.0,
        "p_confidence": 0.5,
        "threshold": 0.025,
        "words": [[NASTY, 0.0, 0.5]],
        "confidence": [-0.5, -0.625, -0.375],
        "alarms": list(alarms),
    }


def rate(name: str) -> dict[str, Any]:
    return {"week": name, "judged": 10, "changed": 3, "rate": 0.3, "low": 0.108, "high": 0.603}


@pytest.fixture
def report(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(models, "_versions", lambda params: (ROWS, 1))
    weeks = [week("2026-W09"), week("2026-W10", "pictures")]
    return {"model": "toy", "version": 7, "weeks": weeks, "edit_rates": [rate("2026-W08"), rate("2026-W10")]}


def test_the_table_shows_confidence_and_what_people_changed_with_intervals(
    report: dict[str, Any], service: Service
) -> None:
    write_json(REPORT, report)
    app = opened("models")
    table = app.dataframe[1].value.astype(object)
    assert list(table["week"]) == ["2026-W08", "2026-W09", "2026-W10"], "also a week without recorded pictures"
    assert list(table["drift"]) == ["", "none", "pictures"]
    assert list(table["confidence"]) == ["", *["-0.50 (-0.62 to -0.38)"] * 2]
    assert list(table["changed by people"]) == ["30% (11% to 60%, 10)", "", "30% (11% to 60%, 10)"]
    assert list(table["p pictures"])[1:] == [0.00012, 0.00012]
    assert "2026-W10: drift of pictures" in shown(app).replace("\\", "")
    assert "![x]" not in app.warning[0].value, "words of captions are text"
    assert "an alarm starts no retraining" in shown(app)
    set_params(Path(), {"retrain.on_drift": True})
    assert "a new alarm starts a retraining" in shown(opened("models"))


def test_without_an_alarm_nothing_warns_and_without_a_report_there_is_no_table(
    report: dict[str, Any], service: Service
) -> None:
    assert len(opened("models").dataframe) == 1
    report["weeks"] = report["weeks"][:1]
    del report["edit_rates"]  # of an older release
    write_json(REPORT, report)
    app = opened("models")
    assert list(app.dataframe[1].value["drift"]) == ["none"]
    assert not [warning for warning in app.warning if "drift" in warning.value]
