"""A Prefect server of the tests' own, and toy workspaces to run flows in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import environment, free_port
from tests.flows import toy


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server that runs; gives the environment in which flows use it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    home = tmp_path_factory.mktemp("prefect")
    quiet = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment(**quiet), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(lambda: answers(f"{url}/health"), 120)
            yield {**quiet, "PREFECT_API_URL": url}
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


@pytest.fixture(scope="session")
def first_toy_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.build(tmp_path_factory.mktemp("first") / "toy workspace")


@pytest.fixture
def toy_workspace(first_toy_workspace: Path, tmp_path: Path) -> Path:
    """A toy workspace in which every stage is up to date."""
    return toy.copy(first_toy_workspace, tmp_path / "homes" / first_toy_workspace.name)


class Api:
    """What a Prefect server knows."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **body: Any) -> Any:
        return self._load(json.dumps(body).encode(), path)

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by its full name, `FLOW/NAME`."""
        return dict(self._load(None, f"deployments/name/{name}"))

    def start(self, deployment: dict[str, Any]) -> dict[str, Any]:
        """Create a flow run of a deployment that is due now."""
        return dict(self.ask(f"deployments/{deployment['id']}/create_flow_run"))

    def _load(self, body: bytes | None, path: str) -> Any:
        request = urllib.request.Request(f"{self._url}/{path}", body, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if (
                    error.code != 503 or time.monotonic() > deadline
                ):  # its SQLite is busy; Prefect's client repeats it too
                    raise
            time.sleep(0.5)

    def run_of(self, log: str) -> dict[str, Any]:
        """The flow run whose log this is."""
        name = re.search(r"Flow run '([\w-]+)'", log)
        assert name, log
        (found,) = self.ask("flow_runs/filter", flow_runs={"name": {"like_": name[1]}})
        return dict(found)

    def tasks(self, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The task runs of a flow run, by name."""
        found = self.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}}, sort="EXPECTED_START_TIME_ASC")
        return {task["name"]: task for task in found}

    def artifacts(self, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The newest artifact of each key of a flow run."""
        found = self.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        return {artifact["key"]: artifact for artifact in sorted(found, key=lambda artifact: artifact["updated"])}


@pytest.fixture
def api(prefect: dict[str, str]) -> Api:
    return Api(prefect["PREFECT_API_URL"])


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def start(prefect: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m MODULE` in a folder; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(folder: Path, *words: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env=environment(**{**prefect, **more}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
