"""Alarms of the watch as events on a real Prefect server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.serve import deployment_name
from flows.steps.drift_event import EVENT
from pipeline.commands.watch import REPORT
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json, write_json
from tests.conftest import run
from tests.flows.conftest import Api, wait_until


def week(name: str, *alarms: str) -> dict[str, Any]:
    return {
        "week": name,
        "pictures": 40,
        "p_pictures": 0.0001,
        "p_words": 0.001,
        "p_confidence": 0.5,
        "threshold": 0.025,
        "words": [["spaceship", 0.0, 0.5]],
        "confidence": [-0.5, -0.6, -0.4],
        "alarms": list(alarms),
    }


def events(api: Api, model: str) -> list[dict[str, Any]]:
    """The drift events of a model, in the order in which they happened."""
    wanted = {"event": {"name": [EVENT]}, "resource": {"id": [model]}, "order": "ASC"}
    return list(api.ask("events/filter", filter=wanted)["events"])


Report = Callable[..., None]


@pytest.fixture
def report(workspace: Path) -> Report:
    """Writes a report of `image-captioning watch`: `report("model", week(...), ...)`."""

    def write(model: str, *weeks: dict[str, Any]) -> None:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        write_json(REPORT, {"model": model, "version": 7, "weeks": list(weeks), "edit_rates": []})

    return write


def sent(workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = run(workspace, sys.executable, "-m", "flows.steps.drift_event", **environment)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done


@pytest.mark.slow
def test_an_alarm_is_one_event_with_its_week_tests_and_p_values(
    workspace: Path, report: Report, api: Api, prefect: dict[str, str]
) -> None:
    report("one", week("2026-W09"), week("2026-W10", "pictures"))
    url = prefect["PREFECT_API_URL"]
    assert sent(workspace, **prefect).stdout == f"watch: sent the event {EVENT} of 2026-W10 (pictures) to {url}\n"
    wait_until(lambda: events(api, "one"))
    assert sent(workspace, **prefect).stdout == ""
    report("one", week("2026-W10", "pictures", "words"), week("2026-W11", "words"))
    assert sent(workspace, **prefect).stdout.count("sent the event") == 2
    wait_until(lambda: len(events(api, "one")) >= 3)
    (REPORT.parent / "events.json").unlink()  # as if it had been killed before it noted that
    report("one", week("2026-W10", "pictures"), week("2026-W12", "pictures"))
    sent(workspace, **prefect)
    wait_until(lambda: len(events(api, "one")) >= 4)
    found = [(one["payload"]["week"], one["payload"]["alarms"]) for one in events(api, "one")]
    assert sorted(found) == [
        ("2026-W10", ["pictures"]), ("2026-W10", ["words"]), ("2026-W11", ["words"]), ("2026-W12", ["pictures"]),
    ]  # fmt: skip
    first = next(one for one in events(api, "one") if one["payload"]["alarms"] == ["pictures"])
    assert first["resource"]["image-captioning.workspace"] == deployment_name(workspace)
    assert first["payload"] == {
        "text": "2026-W10: drift of pictures (spaceship 0% -> 50%)",
        "model": "one",
        "version": 7,
        "week": "2026-W10",
        "pictures": 40,
        "alarms": ["pictures"],
        "p_values": {"pictures": 0.0001},
        "threshold": 0.025,
        "words": [["spaceship", 0.0, 0.5]],
    }


@pytest.mark.slow
def test_without_a_server_one_line_says_so_and_the_alarm_is_sent_later(
    workspace: Path, report: Report, api: Api, prefect: dict[str, str], tmp_path: Path
) -> None:
    report("later", week("2026-W10", "words"))
    alone = {**prefect, "PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect")}
    said = sent(workspace, **alone).stdout
    assert said.startswith("watch: no Prefect server is at hand, so the drift of 2026-W10 is not sent as an event;")
    assert said.count("\n") == 1
    away = "http://127.0.0.1:9/api"
    said = sent(workspace, **{**prefect, "PREFECT_API_URL": away}).stdout
    assert said.startswith(f"watch: {away}: the drift of 2026-W10 is not sent as an event (")
    assert said.count("\n") == 1
    address = prefect["PREFECT_API_URL"].removesuffix("/api")
    schedule = Path(".work/schedule.json")
    schedule.parent.mkdir(exist_ok=True)
    write_json(schedule, {"address": address, "process": "4000000:1.0"})
    assert "no Prefect server is at hand" in sent(workspace, **alone).stdout, "the scheduler has died"
    write_json(schedule, {"address": address, "process": process_identity.identity()})
    assert "sent the event" in sent(workspace, **alone).stdout
    wait_until(lambda: events(api, "later"))
    assert read_json(REPORT.parent / "events.json") == {"later": {"2026-W10": ["words"]}}
