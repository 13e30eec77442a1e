"""The scheduler and its runs outlast PostgreSQL's absence, while Prefect's server stays up and answers with errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.deployment import postgresql
from pipeline.deployment.postgresql import LocalPostgreSQL
from tests.conftest import environment, free_port
from tests.flows.conftest import Api, answers, wait_until
from tests.flows.test_serve import MONDAYS, QUICK, Start, bring, run_now, state_of, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
pytest.importorskip("asyncpg")


class Server:
    """Prefect's server on a PostgreSQL that can be killed.

    Attributes:
        url: of Prefect's API.
    """

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}/api"
        self._folder = folder
        self._postgresql = LocalPostgreSQL(folder / "postgresql", free_port(), "secret")
        self._process = self._postgresql.start(folder / "postgresql.log")
        self.database = self._postgresql.database("prefect")
        postgresql.create(self.database)

    @contextmanager
    def without_database(self) -> Iterator[None]:
        """Kill PostgreSQL, and start it again after the block."""
        self._process.end()
        yield
        self._process = self._postgresql.start(self._folder / "postgresql.log")

    def end(self) -> None:
        self._process.end()


@pytest.fixture
def server() -> Iterator[Server]:
    if not Path("/usr/lib/postgresql").is_dir():
        pytest.skip("needs Debian's postgresql")
    folder = Path(tempfile.mkdtemp(prefix="services-"))
    folder.chmod(0o755)  # PostgreSQL's account enters it
    made = Server(folder)
    try:
        address = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": made.database.url("asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder),
            "DO_NOT_TRACK": "true",
        }
        port = made.url.split(":")[2].removesuffix("/api")
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
        with (folder / "prefect.log").open("w") as log:  # no pipe: it says much while PostgreSQL is away
            prefect = subprocess.Popen(command, env=environment(**address), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: answers(f"{made.url}/ready"), 180)
            yield made
        finally:
            prefect.terminate()
            prefect.wait(60)
    finally:
        made.end()
        shutil.rmtree(folder)


def test_a_run_goes_on_although_postgresql_was_away_for_a_while(
    toy_workspace: Path, start: Start, server: Server
) -> None:
    settings: dict[str, Any] = {"PREFECT_API_URL": server.url, "WORKS_SECONDS": "2", **QUICK}
    scheduler = start(toy_workspace, *MONDAYS, **settings)
    until(scheduler, "Ctrl-C ends this")
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    begun = run_now(Api(server.url), toy_workspace)
    until(scheduler, "Running stage 'ingest")
    with server.without_database():
        assert answers(f"{server.url}/health"), "a server without its database still answers"
        assert not answers(f"{server.url}/ready")
        time.sleep(20)
    until(scheduler, "models:/m/2 is promoted as the first champion")
    wait_until(lambda: state_of(Api(server.url), begun) == "Promoted", 120)
    assert scheduler.poll() is None


def test_the_scheduler_waits_for_postgresql_and_then_goes_on(toy_workspace: Path, start: Start, server: Server) -> None:
    hasty = {"PREFECT_CLIENT_MAX_RETRIES": "0"}  # as after an absence of minutes
    scheduler = start(toy_workspace, *MONDAYS, PREFECT_API_URL=server.url, **QUICK, **hasty)
    until(scheduler, "Ctrl-C ends this")
    with server.without_database():
        until(scheduler, "Prefect's server does not answer (")
        time.sleep(10)
    until(scheduler, "Prefect's server answers again")
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    run_now(Api(server.url), toy_workspace)
    until(scheduler, "models:/m/2 is promoted as the first champion")
    scheduler.terminate()
    assert scheduler.wait(timeout=120) == 0
