"""The weekly watch of the scheduler: whether an alarm starts a retraining."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import serve
from pipeline.runtime.atomic_files import write_json
from tests.conftest import run, set_params
from tests.flows.conftest import Api, wait_until
from tests.flows.steps.test_drift_event import events, week
from tests.flows.test_serve import MONDAYS, QUICK, Start, run_now, scheduled, state_of, until


def report(toy_workspace: Path, *weeks: dict[str, Any]) -> None:
    folder = toy_workspace / "data/watch"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", {"model": "toy", "version": 1, "weeks": list(weeks), "edit_rates": []})


def retrainings(api: Api, toy_workspace: Path) -> list[dict[str, Any]]:
    """The runs that something has started; the scheduled ones lie in the future."""
    deployment = {"id": {"any_": [scheduled(api, toy_workspace)["id"]]}}
    return [run for run in api.ask("flow_runs/filter", deployments=deployment) if not run["auto_scheduled"]]


@pytest.mark.slow
def test_an_alarm_starts_one_retraining_only_where_the_param_says_so(
    toy_workspace: Path, start: Start, api: Api, prefect: dict[str, str]
) -> None:
    set_params(toy_workspace, {"retrain.on_drift": True, "serving.watch": True})
    report(toy_workspace, week("2026-W09"), week("2026-W10", "pictures", "words"))
    scheduler = start(toy_workspace, *MONDAYS, **QUICK)
    said = until(scheduler, "Ctrl-C ends this")
    assert "serve: drift is looked for on Mondays at 00:30 UTC; a new alarm starts a retraining" in said
    name = serve.deployment_name(toy_workspace)
    watching = api.deployment(f"watch/{name}")
    assert watching["schedules"][0]["schedule"]["cron"] == "30 0 * * 1"
    first = api.start(watching)
    until(scheduler, "sent the event image-captioning.drift of 2026-W10 (pictures, words)")
    wait_until(lambda: state_of(api, first) == "Drift")
    wait_until(lambda: [state_of(api, run) for run in retrainings(api, toy_workspace)] == ["Promoted"], 120)
    again = api.start(watching)
    wait_until(lambda: state_of(api, again) == "Drift")
    report(toy_workspace, week("2026-W09"))
    calm = api.start(watching)
    wait_until(lambda: state_of(api, calm) == "No drift")
    assert len(retrainings(api, toy_workspace)) == 1
    scheduler.terminate()
    assert scheduler.wait(timeout=120) == 0

    set_params(toy_workspace, {"retrain.on_drift": False})
    scheduler = start(toy_workspace, *MONDAYS, **QUICK)
    assert "drift" not in until(scheduler, "Ctrl-C ends this")
    assert f"watch/{name}" not in [f"watch/{one['name']}" for one in api.ask("deployments/filter", **of_watch())]
    report(toy_workspace, week("2026-W11", "confidence"))
    done = run(toy_workspace, sys.executable, "-m", "flows.steps.drift_event", **prefect)
    assert "sent the event" in done.stdout
    wait_until(lambda: len(events(api, "toy")) == 2)
    by_hand = run_now(api, toy_workspace)
    wait_until(lambda: state_of(api, by_hand) == "Nothing new", 120)
    assert len(retrainings(api, toy_workspace)) == 2
    scheduler.terminate()
    assert scheduler.wait(timeout=120) == 0


def of_watch() -> dict[str, Any]:
    return {"flows": {"name": {"any_": ["watch"]}}}


@pytest.mark.parametrize("recorded", [False, True])
def test_watching_needs_a_service_that_records(toy_workspace: Path, start: Start, recorded: bool) -> None:
    set_params(toy_workspace, {"retrain.on_drift": True, "serving.watch": recorded})
    done = start(toy_workspace, *MONDAYS, PREFECT_API_URL="http://127.0.0.1:9/api")
    said = done.communicate(timeout=120)[0]
    assert done.returncode == (75 if recorded else 78), said
    assert ("retrain.on_drift: found true, but serving.watch is false" in said) is not recorded
