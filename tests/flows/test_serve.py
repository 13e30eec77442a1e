"""The scheduler: started, asked to run, ended and killed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import serve
from flows.exec.server import Server
from pipeline.config.errors import ConfigError
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json
from tests.conftest import ROOT, free_port, run
from tests.flows.conftest import Api, answers, processes_in, wait_until
from tests.flows.test_retrain import registry

Start = Callable[..., subprocess.Popen[str]]
MONDAYS = ("flows.serve", "--cron", "0 3 * * 1")
QUICK = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}


def until(process: subprocess.Popen[str], words: str) -> str:
    """What a process says until it says some words."""
    said = ""
    assert process.stdout
    for line in iter(process.stdout.readline, ""):
        said += line
        if words in line:
            return said
    raise AssertionError(f"{words!r} was not said:\n{said}")


def scheduled(api: Api, workspace: Path) -> dict[str, Any]:
    """The deployment that retrains a workspace, which a scheduler serves now."""
    return api.deployment(read_json(workspace / ".work/schedule.json")["deployment"])


def run_now(api: Api, workspace: Path) -> dict[str, Any]:
    return api.start(scheduled(api, workspace))


def state_of(api: Api, run: dict[str, Any]) -> str:
    (found,) = api.ask("flow_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    return str(found["state_name"])


def bring(toy_workspace: Path, text: str) -> None:
    file = toy_workspace / "data/raw/mine/captions.csv"
    file.unlink()
    file.write_text(text)


def test_sigterm_ends_the_run_that_goes_on_within_seconds_and_leaves_no_process(
    toy_workspace: Path, start: Start, api: Api, prefect: dict[str, str]
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    scheduler = start(toy_workspace, *MONDAYS, WORKS="finetune=sleep", **QUICK)
    said = until(scheduler, "Ctrl-C ends this")
    assert re.search(r"the next retraining is due Monday \d{4}-\d\d-\d\d 03:00 UTC", said)
    assert scheduled(api, toy_workspace)["schedules"][0]["schedule"]["cron"] == "0 3 * * 1"
    recorded = read_json(toy_workspace / ".work/schedule.json")  # for `image-captioning status`
    assert recorded["cron"] == "0 3 * * 1"
    assert process_identity.pid_of(recorded["process"]) == scheduler.pid
    of_workspace = {"id": {"any_": [scheduled(api, toy_workspace)["id"]]}}
    due = {"deployments": of_workspace, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_until(lambda: any(run["auto_scheduled"] for run in api.ask("flow_runs/filter", **due)))
    second = run(toy_workspace, sys.executable, "-m", *MONDAYS, **prefect)
    assert second.returncode == 75
    assert second.stderr.startswith("serve: another scheduler runs in this workspace")
    assert second.stderr.count("\n") == 1

    begun = run_now(api, toy_workspace)
    until(scheduler, "finetune: sleeps")
    scheduler.terminate()
    before = time.monotonic()
    assert scheduler.wait(timeout=120) == 0
    assert time.monotonic() - before < 30
    wait_until(lambda: not processes_in(toy_workspace), 10)
    assert state_of(api, begun) == "Cancelled"
    assert not list((toy_workspace / ".work/runs").iterdir())
    assert not (toy_workspace / ".work/schedule.json").exists()


@pytest.mark.slow
def test_what_was_cut_off_goes_on_at_the_next_start_and_missed_runs_do_not_pile_up(
    toy_workspace: Path, start: Start, api: Api
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    scheduler = start(toy_workspace, *MONDAYS, WORKS="finetune=sleep", **QUICK)
    until(scheduler, "Ctrl-C ends this")
    run_now(api, toy_workspace)
    until(scheduler, "finetune: sleeps")
    scheduler.terminate()
    scheduler.wait(timeout=120)

    # Three weeks while nothing runs.
    deployment = api.deployment(f"retrain/{serve.deployment_name(toy_workspace)}")["id"]
    missed = [
        api.ask(
            f"deployments/{deployment}/create_flow_run",
            state={
                "type": "SCHEDULED",
                "state_details": {"scheduled_time": (datetime.now(UTC) - timedelta(weeks=weeks)).isoformat()},
            },
        )
        for weeks in (3, 2, 1)
    ]
    scheduler = start(toy_workspace, *MONDAYS, **QUICK)
    said = until(scheduler, "models:/m/2 is promoted as the first champion")
    assert "serve: the last retraining did not finish; it continues now" in said
    assert len(re.findall(r"is cancelled: one run covers all", said)) == 3
    assert "fetch: " not in said
    wait_until(lambda: sorted(state_of(api, run) for run in missed).count("Cancelled") >= 2)
    assert registry(toy_workspace)["versions"] == [2]
    scheduler.terminate()
    assert scheduler.wait(timeout=120) == 0


@pytest.mark.slow
def test_an_event_starts_a_run_and_what_was_killed_is_closed_at_the_next_start(
    toy_workspace: Path, start: Start, api: Api, prefect: dict[str, str]
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    scheduler = start(toy_workspace, *MONDAYS, WORKS="finetune=sleep", **QUICK)
    until(scheduler, "Ctrl-C ends this")
    emitted = run(
        toy_workspace, "prefect", "event", "emit", serve.CHANGED, "--resource-id", "image-captioning.data", **prefect
    )
    assert emitted.returncode == 0, emitted.stderr
    said = until(scheduler, "finetune: sleeps")
    begun = api.run_of(said)
    scheduler.kill()
    wait_until(lambda: not processes_in(toy_workspace), 20)
    scheduler = start(toy_workspace, *MONDAYS, **QUICK)
    until(scheduler, "models:/m/2 is promoted as the first champion")
    assert state_of(api, begun) == "Crashed"
    scheduler.terminate()
    assert scheduler.wait(timeout=120) == 0


@pytest.mark.slow
def test_its_own_server_is_on_this_machine_only_started_again_where_it_dies_and_gone_with_it(
    toy_workspace: Path, start: Start, prefect: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    own = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect"), **QUICK}
    scheduler = start(toy_workspace, *MONDAYS, "--port", str(port), WORKS="finetune=sleep", **own)
    said = until(scheduler, "Ctrl-C ends this")
    assert f"serve: Prefect's pages: http://127.0.0.1:{port}/deployments" in said
    url = f"http://127.0.0.1:{port}/api"
    assert answers(f"{url}/health")
    (server,) = [p for p in processes_in(toy_workspace) if "flows.exec.server" in p.cmdline()]
    listening = [c.laddr for c in server.net_connections() if c.status == "LISTEN"]
    assert [address.ip for address in listening] == ["127.0.0.1"]

    api = Api(url)
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    begun = run_now(api, toy_workspace)
    until(scheduler, "finetune: sleeps")
    server.kill()
    until(scheduler, "Prefect's server had died; restarting it")
    wait_until(lambda: answers(f"{url}/health"), 60)
    assert state_of(api, begun) == "Running"
    scheduler.kill()
    wait_until(lambda: not processes_in(toy_workspace), 30)
    assert not answers(f"{url}/health")

    scheduler = start(toy_workspace, *MONDAYS, "--port", str(port), **own)
    said = until(scheduler, "models:/m/2 is promoted as the first champion")
    assert re.search(rf"serve: the run {begun['name']} \(data\) was Running, but its process died", said)
    assert state_of(api, begun) == "Crashed"
    scheduler.send_signal(signal.SIGINT)
    assert scheduler.wait(timeout=120) == 0
    assert not processes_in(toy_workspace)


@pytest.mark.slow
def test_it_ends_with_its_run_though_a_server_of_others_does_not_answer(
    toy_workspace: Path, start: Start, prefect: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    others = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect")}
    server = start(tmp_path, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), **others)
    wait_until(lambda: answers(f"{url}/health"), 60)
    scheduler = start(toy_workspace, *MONDAYS, WORKS="finetune=sleep", PREFECT_API_URL=url, **QUICK)
    until(scheduler, "Ctrl-C ends this")
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    run_now(Api(url), toy_workspace)
    until(scheduler, "finetune: sleeps")
    server.kill()
    wait_until(lambda: not answers(f"{url}/health"), 20)
    scheduler.terminate()
    said = scheduler.communicate(timeout=150)[0]
    assert scheduler.returncode == 0, said
    assert f"{url} does not answer" in said
    assert not processes_in(toy_workspace)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--cron", "0 3 * * 9"), "Invalid cron"),
        (("--cron", "0 3 * * 1", "--timezone", "Mars/Base"), "Mars/Base"),
    ],
)
def test_a_clock_that_makes_no_sense_is_told_in_one_line(toy_workspace: Path, words: tuple[str, ...], why: str) -> None:
    done = run(toy_workspace, sys.executable, "-m", "flows.serve", *words)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


class Locked(BaseHTTPRequestHandler):
    """A server that is well, and lets nobody in."""

    def answer(self) -> None:
        self.send_response(200 if self.path.endswith("/health") else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer  # noqa: N815 - the base class calls these names

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_server_that_lets_nobody_in_is_told_in_one_line(toy_workspace: Path, start: Start) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Locked) as locked:
        threading.Thread(target=locked.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{locked.server_port}/api"
        refused = start(toy_workspace, *MONDAYS, PREFECT_API_URL=address)
        said = refused.communicate(timeout=120)[0]
        locked.shutdown()
    assert refused.returncode == 75, said
    assert said.splitlines()[-1].startswith(f"serve: the server at {address} can't be used (")
    assert "PREFECT_API_AUTH_STRING" in said
    assert "Traceback" not in said


class Proxy(BaseHTTPRequestHandler):
    """A proxy that demands a user and a password for everything."""

    def do_GET(self) -> None:
        let_in = self.headers["Authorization"] == "Basic YW5uOnNlY3JldA=="  # ann:secret
        self.send_response(200 if let_in else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_server_behind_a_proxy_with_a_password_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        server = Server(f"http://127.0.0.1:{proxy.server_port}/prefect/api", None)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:secret")
        assert server.answers()
        assert server.is_ready()
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:wrong")
        assert not server.answers()
        with pytest.raises(ConfigError, match=r"HTTP 401; set PREFECT_API_AUTH_STRING to USER:PASSWORD"):
            server.start()
        proxy.shutdown()


def test_prefect_yaml_has_the_same_deployments() -> None:
    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    of_flows = {d["entrypoint"].rpartition(":")[2]: d for d in deployments}
    assert set(of_flows) == {"retrain", "train"}
    for deployment in deployments:
        path, _, function = deployment["entrypoint"].partition(":")
        assert f"def {function}(" in (ROOT / path).read_text()
        assert deployment["tags"] == [serve.TAG]
        assert deployment["name"] == "{{ $WORKSPACE }}"
    (trigger,) = of_flows["retrain"]["triggers"]
    assert trigger["expect"] == [serve.CHANGED]
    assert of_flows["retrain"]["schedules"][0]["cron"] == "0 3 * * 1"
    assert "schedules" not in of_flows["train"]


@pytest.mark.slow
def test_a_worker_of_a_process_pool_runs_them_and_a_killed_worker_takes_its_run_along(
    toy_workspace: Path, start: Start, api: Api, prefect: dict[str, str]
) -> None:
    (toy_workspace / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    for words in (
        ("work-pool", "create", "--type", "process", "image-captioning"),
        ("--no-prompt", "deploy", "--all"),
    ):
        done = run(toy_workspace, "prefect", *words, WORKSPACE="photos", **prefect)
        assert done.returncode == 0, done.stdout + done.stderr
    assert api.deployment("train/photos")["entrypoint"] == "flows/train.py:train"
    deployment = api.deployment("retrain/photos")
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    worker = start(toy_workspace, "prefect", "worker", "start", "--pool", "image-captioning", WORKS="finetune=sleep")
    begun = api.start(deployment)
    until(worker, "finetune: sleeps")
    worker.kill()
    wait_until(lambda: not processes_in(toy_workspace), 20)
    assert state_of(api, begun) == "Crashed"
    start(toy_workspace, "prefect", "worker", "start", "--pool", "image-captioning")
    again = api.start(deployment)
    wait_until(lambda: state_of(api, again) == "Promoted", 90)


def test_a_server_ends_with_its_owner_and_without_one_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.exec import server

    called: list[list[str]] = []
    watched: list[list[str]] = []
    monkeypatch.setattr(server.runpy, "run_module", lambda name, run_name: called.append([name, *sys.argv]))
    monkeypatch.setattr(process_identity, "end_with", lambda others, *seconds: watched.append(others))
    monkeypatch.setattr(sys, "argv", ["server", "--port", "4321"])
    monkeypatch.setenv("IMAGE_CAPTIONING_OWNER", "12:3.4")
    server.main()
    assert watched == [["12:3.4"]]
    assert called == [["prefect", "prefect", "server", "start", "--host", "127.0.0.1", "--port", "4321"]]
    monkeypatch.setattr(sys, "argv", ["server", "--port", "4321"])
    server.main()  # the owner is not its children's
    assert len(watched) == 1


def test_the_name_of_a_deployment_tells_workspaces_of_one_name_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [serve.deployment_name(Path(path)) for path in ("/a/My Photos", "/b/My Photos", "/a/\N{SNOWMAN}")]
    assert [name[:-7] for name in names] == ["my-photos", "my-photos", "workspace"]
    assert len(set(names)) == 3
    assert serve.deployment_name(Path("/a/My Photos")) == names[0]
    monkeypatch.setattr(serve.socket, "gethostname", lambda: "another")
    assert serve.deployment_name(Path("/a/My Photos")) != names[0]


@pytest.mark.slow
def test_two_workspaces_on_one_server_each_run_their_own_and_leave_the_others_runs_alone(
    toy_workspace: Path, start: Start, api: Api, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(toy_workspace, tmp_path / "other" / toy_workspace.name))
    for workspace in (toy_workspace, other):
        bring(workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    first = start(toy_workspace, *MONDAYS, WORKS="finetune=sleep", **QUICK)
    until(first, "Ctrl-C ends this")
    sleeping = run_now(api, toy_workspace)
    until(first, "finetune: sleeps")
    second = start(other, *MONDAYS, **QUICK)
    until(second, "Ctrl-C ends this")
    assert scheduled(api, toy_workspace)["id"] != scheduled(api, other)["id"]
    run_of_other = run_now(api, other)
    until(second, "models:/m/2 is promoted as the first champion")
    wait_until(lambda: state_of(api, run_of_other) == "Promoted")
    assert (registry(other)["versions"], (toy_workspace / "mlflow.db.json").exists()) == ([2], False)
    second.terminate()
    assert second.wait(timeout=120) == 0
    assert state_of(api, sleeping) == "Running"
    first.terminate()
    assert first.wait(timeout=120) == 0
    assert state_of(api, sleeping) == "Cancelled"


@pytest.mark.slow
def test_a_scheduler_starts_the_server_again_after_the_scheduler_that_had_started_it_ended(
    toy_workspace: Path, start: Start, prefect: dict[str, str], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(toy_workspace, tmp_path / "other" / toy_workspace.name))
    bring(other, "a.jpg,a boat\nb.jpg,a red house\n")
    port = free_port()
    own = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect"), **QUICK}
    words = (*MONDAYS, "--port", str(port))
    first = start(toy_workspace, *words, **own)
    until(first, "Ctrl-C ends this")
    second = start(other, *words, **own)
    assert "starting Prefect's server" not in until(second, "Ctrl-C ends this")
    first.terminate()
    assert first.wait(timeout=120) == 0
    until(second, "Prefect's server had died; restarting it")
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/health"))
    run_now(Api(f"http://127.0.0.1:{port}/api"), other)
    until(second, "models:/m/2 is promoted as the first champion")
    second.terminate()
    assert second.wait(timeout=120) == 0
    assert not answers(f"http://127.0.0.1:{port}/api/health")
