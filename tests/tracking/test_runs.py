from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.tracking import run_metrics, runs
from pipeline.tracking.live import Live
from pipeline.tracking.run_names import run_name
from tests.conftest import environment

KEY = "a" * 64


@pytest.fixture
def store(workspace: Path, mlflow_db: Path) -> mlflow.MlflowClient:
    shutil.copy(mlflow_db, workspace)
    return runs.client()


def status(store: mlflow.MlflowClient, run_id: str) -> str:
    return str(store.get_run(run_id).info.status)


def test_a_training_has_one_run_that_a_second_attempt_goes_on_in(store: mlflow.MlflowClient) -> None:
    experiment = runs.experiment(store, "x")
    with pytest.raises(RuntimeError), runs.training_run(store, experiment, KEY, {}) as first:
        first.metrics({"loss": 3.0}, 1)
        raise RuntimeError
    assert status(store, first.id) == "FAILED"
    with runs.training_run(store, experiment, KEY, {}) as second:
        assert status(store, first.id) == "RUNNING"
        second.metrics({"loss": 3.0}, 1)
        second.metrics({"loss": 2.0}, 2)
    assert second.id == first.id
    assert status(store, first.id) == "FINISHED"
    assert [(m.step, m.value) for m in store.get_metric_history(first.id, "loss")] == [(1, 3.0), (2, 2.0)]


def test_a_run_has_the_machines_metrics_and_a_second_attempt_goes_on_after_them(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    experiment, key = runs.experiment(store, "x"), "machine/cpu_utilization_percentage"
    counts = []
    for _ in range(2):
        with runs.training_run(store, experiment, KEY, {}) as run, run.system_metrics():
            time.sleep(1)
        steps = [metric.step for metric in store.get_metric_history(run.id, key)]
        assert sorted(steps) == list(range(len(steps)))
        counts.append(len(steps))
    assert 0 < counts[0] < counts[1]
    found = store.get_run(run.id).data.metrics
    assert "machine/system_memory_usage_megabytes" in found
    assert not [name for name in found if "disk" in name or "network" in name]


def test_mlflow_shows_test_metrics_first_and_those_of_the_machine_not_above_them(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's page of a run shows metrics below `system/` first, then the others in the order of `get_run`."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with Live("x", KEY, {"finetune.checkpoint": "scratch"}, "name") as live:
        live.metrics({"step/train_loss": 3.0}, 1)
        time.sleep(0.5)
    found = runs.find_run(store, runs.experiment(store, "x"), KEY)
    assert found
    reserved = run_metrics.expected(from_scratch=True)
    assert all(math.isnan(store.get_run(found.info.run_id).data.metrics[name]) for name in reserved)
    with runs.training_run(store, found.info.experiment_id, KEY, {}) as run:
        run.replace_metrics(dict.fromkeys(reversed(reserved), 0.25))
    metrics = store.get_run(found.info.run_id).data.metrics
    assert list(metrics)[: len(reserved)] == reserved
    assert {metrics[name] for name in reserved} == {0.25}
    assert [name for name in metrics if name.startswith("machine/")]
    assert not [name for name in metrics if name.startswith("system/")]


def test_a_second_attempt_does_not_take_back_test_metrics(store: mlflow.MlflowClient) -> None:
    experiment = runs.experiment(store, "x")
    with runs.training_run(store, experiment, KEY, {}) as run:
        run.reserve_metrics(["test/CIDEr-D"])
        run.replace_metrics({"test/CIDEr-D": 1.5})
    with runs.training_run(store, experiment, KEY, {}) as run:
        run.reserve_metrics(["test/CIDEr-D"])
    assert store.get_run(run.id).data.metrics["test/CIDEr-D"] == 1.5


def test_where_a_training_came_from_is_told_once(store: mlflow.MlflowClient) -> None:
    experiment = runs.experiment(store, "x")
    for commit in ("first", "second"):
        with runs.training_run(store, experiment, KEY, {}) as run:
            run.tags({"git.commit": commit})
            run.params({"epochs": commit})
            run.trained_on("data/dataset", commit * 20)
    found = store.get_run(run.id)
    assert found.data.tags["git.commit"] == found.data.params["epochs"] == "first"
    assert len(found.inputs.dataset_inputs) == 1


def test_a_new_run_is_named_by_date_data_and_checkpoint(store: mlflow.MlflowClient) -> None:
    experiment = runs.experiment(store, "x")
    name = run_name(["sample"], "models/git-demo")
    date, *rest = name.split(" ")
    assert date == time.strftime("%Y-%m-%d")
    assert rest == ["sample", "git-demo"]
    assert run_name(["a", "b"], "microsoft/git-base").endswith(" a+b git-base")
    assert run_name(["a", "b", "c", "d"], "scratch").endswith(" 4 sources scratch")
    for wanted in (name, "another name"):
        with runs.training_run(store, experiment, KEY, {}, wanted) as run:
            assert run.name == name


def test_a_training_is_logged_under_its_name_after_dead_runs_are_closed(
    store: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = {"process": "4194304:1.0", "host": socket.gethostname()}
    store.create_run(runs.experiment(store, "x"), run_name="an old run", tags=tags)
    with Live("x", KEY, {"epochs": 2}, "2026-11-26 sample git-demo") as live:
        live.metrics({"loss": 3.0}, 1)
    assert "closed the MLflow run an old run" in capsys.readouterr().err
    found = runs.find_run(store, runs.experiment(store, "x"), KEY)
    assert found is not None
    assert found.info.run_name == "2026-11-26 sample git-demo"
    assert found.data.metrics["loss"] == 3


ENDLESS = """
import time
from pathlib import Path
from pipeline.tracking import runs
store = runs.client()
with runs.training_run(store, runs.experiment(store, "x"), "b" * 64, {}) as run:
    Path("run id").write_text(run.id)
    time.sleep(300)
"""


def test_the_run_of_a_process_that_died_is_closed_and_that_of_a_living_one_is_not(
    store: mlflow.MlflowClient, workspace: Path
) -> None:
    experiment = runs.experiment(store, "x")
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=workspace, env=environment())
    end = time.monotonic() + 60
    while not (workspace / "run id").exists() or not (workspace / "run id").read_text():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    run_id = (workspace / "run id").read_text()
    assert runs.close_dead_runs(store, experiment) == []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert runs.close_dead_runs(store, experiment) == ["bbbbbbbb"]
    assert status(store, run_id) == "FAILED"
    assert runs.close_dead_runs(store, experiment) == []


def test_of_another_host_the_heartbeat_decides_and_other_peoples_runs_are_left_alone(
    store: mlflow.MlflowClient,
) -> None:
    experiment = runs.experiment(store, "x")
    now = time.time()

    def running(**tags: str) -> str:
        return str(store.create_run(experiment, tags=tags).info.run_id)

    away = {"host": f"not {socket.gethostname()}", "process": "1:1.00"}
    fresh = running(**away, heartbeat=str(now - 60))
    stale = running(**away, heartbeat=str(now - 3600))
    foreign = running()
    assert len(runs.close_dead_runs(store, experiment)) == 1
    assert [status(store, run) for run in (fresh, stale, foreign)] == ["RUNNING", "FAILED", "RUNNING"]


def test_a_server_that_can_not_be_reached_is_told_with_the_mend(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TemporaryError, match=r"MLflow at http://127\.0\.0\.1:9 can't be used .* start that server"):
        runs.client()


def test_a_deleted_experiment_is_told_with_the_mend(store: mlflow.MlflowClient) -> None:
    store.delete_experiment(runs.experiment(store, "x"))
    with pytest.raises(ConfigError, match=r"the experiment x was deleted in MLflow; restore it"):
        runs.experiment(store, "x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://mlflow:secret@db/x can't", "at postgresql://db/x can't"),
        ("https://me@host:5000/#/a@b and sqlite:///a@b.db", "https://host:5000/#/a@b and sqlite:///a@b.db"),
    ],
)
def test_secrets_in_addresses_are_not_shown(text: str, shown: str) -> None:
    assert runs.shown(text) == shown
