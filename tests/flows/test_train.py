"""The training flow against a real Prefect server, in a toy workspace with real DVC."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.exec import tasks
from flows.train import run_stages
from pipeline.config.params import Params, load
from pipeline.runtime import workspace_lock
from pipeline.runtime.atomic_files import read_json, sha256_of
from tests.conftest import ROOT, run, set_params
from tests.flows.conftest import Api, processes_in, wait_until
from tests.flows.toy import git

OUTPUTS = ("data/ingest", "data/dataset", "models/finetune", "reports", "dvc.lock", "data/raw")
NOTHING = "Data and pipelines are up to date."
Start = Callable[..., subprocess.Popen[str]]


def result(folder: Path) -> str:
    return sha256_of(*(folder / name for name in OUTPUTS))


def train(folder: Path, prefect: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "flows.train", **prefect, **more)


def bring(folder: Path, text: str) -> None:
    """Change the raw captions, which DVC may have linked to its cache."""
    file = folder / "data/raw/mine/captions.csv"
    file.unlink()
    file.write_text(text)


def test_it_has_the_result_of_dvc_repro_also_where_a_stage_was_killed_and_a_person_can_browse_what_it_did(
    toy_workspace: Path, prefect: dict[str, str], api: Api, tmp_path: Path
) -> None:
    other = toy_workspace.parent / "the same"
    shutil.copytree(toy_workspace, other)
    for folder in (toy_workspace, other):
        bring(folder, "a.jpg,a boat\nb.jpg,a red house\n")
    assert run(other, "dvc", "repro").returncode == 0
    done = train(toy_workspace, prefect, WORKS=f"build=75@{tmp_path}/once evaluate=kill@{tmp_path}/twice finetune=bars")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("flows.train: every stage is up to date")
    assert result(toy_workspace) == result(other)
    assert git(toy_workspace, "status", "--short").split() == ["M", "data/raw/mine.dvc", "M", "dvc.lock"]

    found = api.run_of(done.stderr)
    tasks = api.tasks(found)
    assert [*tasks] == ["commit_raw", "ingest", "build", "finetune", "evaluate", "register", "model_status"]
    assert {task["state_type"] for task in tasks.values()} == {"COMPLETED"}
    assert {name for name, task in tasks.items() if task["run_count"] == 2} == {"build", "evaluate"}
    assert set(tasks["build"]["tags"]) == {"image-captioning", "build"}
    shown = api.artifacts(found)
    assert set(shown) == {"ingest-mine-account", "build-account", "figures", "mlflow-run", "finetune-progress"}
    assert '{"what": "rows / in", "count": 2}' in shown["ingest-mine-account"]["data"]
    assert '"champion": "1.2500", "change": "+0.2500"' in shown["figures"]["data"]
    assert "http://127.0.0.1:5000/#/experiments/1/runs/r" in shown["mlflow-run"]["data"]
    assert shown["finetune-progress"]["data"] == 100
    assert len(re.findall(r"finetune: +\d+% \d+ of 40 steps", done.stderr)) <= 2


@pytest.mark.slow
def test_what_comes_in_while_it_runs_is_the_next_runs(toy_workspace: Path, start: Start) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    flow = start(toy_workspace, "flows.train", WORKS_SECONDS="1")
    assert flow.stdout
    for line in flow.stdout:
        if "Running stage 'build'" in line:
            bring(toy_workspace, "c.jpg,a third\n")
    assert flow.wait() == 0
    assert read_json(toy_workspace / "reports/ingest/mine.json")["rows"]["in"] == 2
    assert read_json(toy_workspace / "reports/build.json")["rows"]["in"] == 2
    status = run(toy_workspace, "dvc", "status").stdout
    assert "data/raw/mine" in status
    assert "build:" not in status


def test_what_is_up_to_date_is_not_run_and_shows_nothing(
    toy_workspace: Path, prefect: dict[str, str], api: Api
) -> None:
    before = result(toy_workspace)
    done = train(toy_workspace, prefect)
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stderr
    found = api.run_of(done.stderr)
    assert [*api.tasks(found)] == ["commit_raw", "ingest", "build", "finetune", "evaluate", "register"]
    assert api.artifacts(found) == {}
    assert result(toy_workspace) == before


@pytest.mark.parametrize(("works", "code"), [("build=65", 65), pytest.param("build=78", 78, marks=pytest.mark.slow)])
def test_bad_data_and_bad_configuration_fail_at_once_with_the_stages_own_words(
    toy_workspace: Path, prefect: dict[str, str], api: Api, works: str, code: int
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    done = train(toy_workspace, prefect, WORKS=works)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == "flows.train: build: build was told to fail"
    found = api.run_of(done.stderr)
    assert found["state_type"] == "FAILED"
    assert found["state"]["message"] == "build: build was told to fail"
    tasks = api.tasks(found)
    assert "finetune" not in tasks
    assert tasks["build"]["run_count"] == 1


@pytest.mark.slow
def test_it_gives_up_in_the_end(toy_workspace: Path, prefect: dict[str, str], api: Api) -> None:
    set_params(toy_workspace, {"flow.retries": 2})
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    done = train(toy_workspace, prefect, WORKS="ingest=75")
    assert done.returncode == 75
    assert api.tasks(api.run_of(done.stderr))["ingest"]["run_count"] == 3


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_ended_with_all_its_processes(
    toy_workspace: Path, prefect: dict[str, str], api: Api
) -> None:
    set_params(toy_workspace, {"flow.timeout_minutes.finetune": 0.05})
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    done = train(toy_workspace, prefect, WORKS="finetune=sleep")
    assert done.returncode == 75
    words = "finetune: took longer than 0.05 minutes; raise flow.timeout_minutes in params.yaml"
    assert done.stderr.splitlines()[-1] == f"flows.train: {words}"
    task = api.tasks(api.run_of(done.stderr))["finetune"]
    assert (task["state_name"], task["run_count"]) == ("TimedOut", 1)
    assert not processes_in(toy_workspace)
    assert train(toy_workspace, prefect).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_flow_that_is_ended_leaves_no_process_behind_and_the_next_one_ends_well(
    toy_workspace: Path, prefect: dict[str, str], start: Start, how: signal.Signals
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    flow = start(toy_workspace, "flows.train", WORKS="finetune=sleep")
    assert flow.stdout
    next(line for line in flow.stdout if "finetune: sleeps" in line)
    assert len(processes_in(toy_workspace)) >= 3  # the flow, dvc, the stage
    flow.send_signal(how)
    rest = flow.stdout.read()
    assert flow.wait(timeout=20) == (75 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert rest.splitlines()[-1].startswith("flows.train: interrupted; run it again")
    wait_until(lambda: not processes_in(toy_workspace), 10)
    done = train(toy_workspace, prefect)
    assert done.returncode == 0, done.stderr
    if how == signal.SIGKILL:
        assert re.search(r"takes over the workspace from `flows.train` \(process \d+\), which had died", done.stderr)
    assert run(toy_workspace, "dvc", "status").stdout.strip() == NOTHING


@pytest.mark.slow
def test_a_flow_waits_for_a_dvc_repro_and_a_dvc_repro_is_refused_in_one_line(
    toy_workspace: Path, start: Start, prefect: dict[str, str]
) -> None:
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    first = start(toy_workspace, "dvc", "repro", WORKS_SECONDS="1.5")
    assert first.stdout
    next(line for line in first.stdout if "Running stage 'build'" in line)
    flow = start(toy_workspace, "flows.train", WORKS_SECONDS="1")
    assert flow.stdout
    waits = next(line for line in flow.stdout if "waiting: " in line)
    assert re.search(r"`dvc repro` \(process \d+\) is running in this workspace; wait for it to finish", waits)
    assert "is running in this workspace" not in first.stdout.read()
    assert first.wait() == 0

    assert flow.wait() == 0
    set_params(toy_workspace, {"finetune.epochs": 7})
    flow = start(toy_workspace, "flows.train", WORKS_SECONDS="2")
    assert flow.stdout
    next(line for line in flow.stdout if "Running stage 'finetune'" in line)
    second = run(toy_workspace, "dvc", "repro")
    assert second.returncode != 0
    said = second.stdout + second.stderr
    assert re.search(r"is running in this workspace|is busy, it is being blocked", said), said
    assert "Traceback" not in said
    flow.stdout.read()
    assert flow.wait() == 0
    assert run(toy_workspace, "dvc", "status").stdout.strip() == NOTHING


@pytest.mark.slow
def test_of_two_flows_the_second_waits_and_gives_up_in_one_line_where_that_takes_too_long(
    toy_workspace: Path, start: Start, prefect: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(toy_workspace, {"flow.wait_minutes": 0})
    bring(toy_workspace, "a.jpg,a boat\nb.jpg,a red house\n")
    first = start(toy_workspace, "flows.train", WORKS="finetune=sleep")
    assert first.stdout
    next(line for line in first.stdout if "finetune: sleeps" in line)
    second = train(toy_workspace, prefect)
    assert second.returncode == 75
    assert re.match(r"flows.train: `flows.train` \(process \d+\) is running", second.stderr.splitlines()[-1])
    first.terminate()
    first.wait()
    monkeypatch.chdir(toy_workspace)
    assert workspace_lock._read() is None


def test_a_server_that_is_not_there_is_told_in_one_line(toy_workspace: Path) -> None:
    done = run(toy_workspace, sys.executable, "-m", "flows.train", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("flows.train: Failed to reach API at http://127.0.0.1:9/api; start")
    assert "Traceback" not in done.stderr


def test_prefects_own_server_that_does_not_start_in_time_is_reported_in_one_line(
    toy_workspace: Path, tmp_path: Path
) -> None:
    late = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0", "PREFECT_HOME": str(tmp_path / "prefect")}
    done = run(toy_workspace, sys.executable, "-m", "flows.train", **late)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("flows.train: Timed out while attempting to connect to ephemeral")
    assert done.stderr.splitlines()[-1].endswith("; run it again")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--dry-run", 2)])
def test_who_asks_for_help_or_mistypes_starts_nothing(workspace: Path, word: str, code: int) -> None:
    for name in ("train", "retrain"):
        done = run(workspace, sys.executable, "-m", f"flows.{name}", word, PYTHONPATH=str(ROOT))
        assert done.returncode == code
        assert f"usage: image-captioning {name} [-h]" in done.stdout + done.stderr
    assert [path.name for path in workspace.iterdir()] == ["params.yaml"]


def test_architectures_are_compared_if_params_name_some(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def stage(params: Params, name: str, ask: bool) -> str:
        ran.append(name)
        return "nothing"

    monkeypatch.setattr(tasks, "step", lambda *words, **options: {"stale": []})
    monkeypatch.setattr(tasks, "stage", stage)
    run_stages(load())
    assert ran == ["ingest", "build", "finetune", "evaluate", "register"]
    set_params(workspace, {"compare.architectures": ["cnn-lstm"]})
    ran.clear()
    run_stages(load())
    assert ran == ["ingest", "build", "finetune", "compare", "evaluate", "register"]
