"""Retraining from the page through Prefect's deployment: a real server, the real scheduler, a toy workspace."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import deployment, models
from app.deployment import Deployment, served
from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import write_json
from tests.app.conftest import Service
from tests.app.test_pages import ROWS, button, labels, opened, shown
from tests.flows.conftest import Api, api, first_toy_workspace, prefect, start, toy_workspace
from tests.flows.test_serve import MONDAYS, QUICK, bring, until

__all__ = ["api", "first_toy_workspace", "prefect", "start", "toy_workspace"]  # fixtures
SECONDS = 180.0


@pytest.mark.slow
def test_a_retraining_is_started_and_watched_through_the_deployment(
    toy_workspace: Path,
    start: Callable[..., subprocess.Popen[str]],
    api: Api,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(toy_workspace)
    monkeypatch.setattr(models, "_versions", lambda params: (ROWS, 1))
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    scheduler = start(toy_workspace, *MONDAYS, **QUICK)
    until(scheduler, "Ctrl-C ends this")
    found = served()
    assert found is not None
    assert found.run() is None, "what the schedule plans is no run yet"
    app = opened("models")
    button(app, "Start a retraining").click().run()
    assert "A retraining is" in shown(app)
    assert "Start a retraining" not in labels(app)
    assert found.start() == found.run(), "a second click starts none"
    end = time.monotonic() + SECONDS
    while "The last retraining" not in shown(app):
        assert time.monotonic() < end, shown(app)
        time.sleep(1)
        app.run()
    assert "Promoted. models:/m/2 is promoted" in shown(app)
    of_it = {"id": {"any_": [api.deployment(found.name)["id"]]}}
    runs = api.ask("flow_runs/filter", deployments=of_it, flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
    assert len(runs) == 1
    newest = found.run()
    assert newest is not None
    assert newest.link == f"{found.pages}/runs/flow-run/{runs[0]['id']}"
    scheduler.terminate()
    scheduler.wait(60)
    assert served() is None
    assert "Prefect" not in [one.label for one in opened("models").button]


def test_a_prefect_server_that_is_down_is_one_line(
    workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_versions", lambda params: (ROWS, 1))
    schedule = {
        "address": "http://127.0.0.1:9",
        "pages": "http://127.0.0.1:9",
        "deployment": "retrain/toy",
        "process": process_identity.identity(),
    }
    Path(".work").mkdir()
    write_json(Path(".work/schedule.json"), schedule)
    app = opened("models")
    assert "Prefect at http://127.0.0.1:9: " in shown(app).replace("\\", "")
    assert not app.exception
    with pytest.raises(TemporaryError, match="restart the scheduler"):
        Deployment(**{"pages": "http://127.0.0.1:9", "name": "retrain/toy"}).start()


def test_behind_a_proxy_the_pages_have_another_address_than_the_server(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = {"id": "x", "name": "n", "state": {"type": "RUNNING", "name": "Running"}, "auto_scheduled": False}

    def answer(method: str, address: str, **settings: Any) -> httpx.Response:
        asked.append(address)
        found = {"id": "d"} if "/deployments/" in address else [run]
        return httpx.Response(200, json=found, request=httpx.Request(method, address))

    monkeypatch.setattr(deployment.httpx, "request", answer)
    schedule = {"address": "http://prefect:4200", "pages": "http://localhost:8080/prefect", "deployment": "retrain/toy"}
    write_json(paths.SCHEDULE, {**schedule, "process": process_identity.identity()})
    found = served()
    assert found is not None
    newest = found.run()
    assert newest is not None
    assert newest.link == "http://localhost:8080/prefect/runs/flow-run/x"
    assert all(address.startswith("http://prefect:4200/api/") for address in asked)


def test_two_clicks_at_once_create_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def answer(self: Deployment, method: str, path: str, body: Any = None) -> Any:
        asked.append((path, body))
        if path.endswith("filter"):
            return []
        if path.endswith("create_flow_run"):
            return {
                "id": "x",
                "name": "n",
                "state": {"type": "SCHEDULED", "name": "Scheduled"},
                "auto_scheduled": False,
            }
        return {"id": "d"}

    monkeypatch.setattr(deployment.Deployment, "_ask", answer)
    one = Deployment("http://127.0.0.1:4200", "retrain/toy")
    assert one.start() == one.start()
    first, second = (body for path, body in asked if path.endswith("create_flow_run"))
    assert first == second, "Prefect makes one run for each idempotency key"
