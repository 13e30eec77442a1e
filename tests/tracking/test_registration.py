"""Registration from several machines at once, and what a registration that was cut off leaves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline.tracking import deletion, registration, registry, runs
from tests.conftest import environment, free_port
from tests.tracking.registrars import registered

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
MODEL = "image-captioning"
DEAD = f"{socket.gethostname()} 1:0-of-another-boot"


@pytest.fixture
def store(workspace: Path, mlflow_db: Path) -> mlflow.MlflowClient:
    shutil.copy(mlflow_db, workspace)
    return runs.client()


def check(rounds: int, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    runs.client()  # creates the tables
    began = time.monotonic()
    results = registered(rounds, 4, folder, uri)
    seconds = time.monotonic() - began
    wrong = [(model, there, said) for model, there, said in results if there != [1] or any("1" not in s for s in said)]
    made = sum(words.startswith("made") for _, _, said in results for words in said)
    failed = sum(words.startswith("failed") for _, _, said in results for words in said)
    print(f"{rounds} rounds of 4 in {seconds:.0f} s: {len(wrong)} wrong, {made} created a version, {failed} failed")
    assert not wrong
    store = runs.client()
    for model, _, _ in results:
        experiment = store.get_experiment_by_name(model).experiment_id
        assert len(store.search_runs([experiment])) == 1
        assert len(store.search_logged_models([experiment])) == 1


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_four_registrations_at_once_make_one_version_in_a_file(
    store: mlflow.MlflowClient, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(rounds, tmp_path, f"sqlite:///{Path('mlflow.db').absolute()}", monkeypatch)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", f"{port}", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--uvicorn-opts", "--log-level warning"]
    quiet = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=quiet, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)


@pytest.mark.services
@pytest.mark.parametrize("rounds", [20])
def test_four_registrations_at_once_make_one_version_on_a_server(
    server: str, rounds: int, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(rounds, tmp_path, server, monkeypatch)


@pytest.fixture
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (POSTGRESQL / "initdb").exists() or os.getuid() != 0:
        pytest.skip("needs PostgreSQL 15 in /usr/lib/postgresql/15, and root to become its user")
    folder = Path("/tmp") / f"postgresql-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "password").write_text("test")
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
        who = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        data, port = folder / "data", free_port()
        make = ["-D", str(data), "-A", "scram-sha-256", "-U", "mlops", f"--pwfile={folder / 'password'}"]
        subprocess.run([*who, str(POSTGRESQL / "initdb"), *make], check=True, capture_output=True, cwd=folder)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        control = [*who, str(POSTGRESQL / "pg_ctl"), "-D", str(data), "-w"]
        log = str(folder / "log")
        start = [*control, "-o", options, "-l", log, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            yield f"postgresql+psycopg2://mlops:test@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.services
@pytest.mark.parametrize("rounds", [20])
def test_four_registrations_at_once_make_one_version_in_postgresql(
    postgresql: str, rounds: int, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    check(rounds, tmp_path, postgresql, monkeypatch)


def training(store: mlflow.MlflowClient, key: str) -> tuple[str, runs.TrainingRun]:
    experiment = runs.experiment(store, MODEL)
    with runs.training_run(store, experiment, key, {}) as run:
        return experiment, run


def logged(store: mlflow.MlflowClient, experiment: str, run: runs.TrainingRun, registrar: str) -> str:
    model = store.create_logged_model(
        experiment, name=registry.LOGGED, source_run_id=run.id, tags={registry.REGISTRAR: registrar}
    )
    place = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    place.mkdir(parents=True)
    (place / "weights").write_text("x")
    return str(model.model_id)


def test_what_a_killed_registration_left_goes_at_the_next_one(store: mlflow.MlflowClient) -> None:
    experiment, run = training(store, "a")
    alive = registration._registrar()[registry.REGISTRAR]
    logged(store, experiment, run, DEAD)
    kept = logged(store, experiment, run, alive)
    elsewhere = logged(store, experiment, run, "another-host 12:34")
    tags = {registry.MODEL_SHA256: "a"}
    assert registration.register(store, run, MODEL, f"models:/{logged(store, experiment, run, alive)}", tags, "") == 1
    duplicate = logged(store, experiment, run, DEAD)
    store.create_model_version(MODEL, f"models:/{duplicate}", run.id, tags={**tags, registry.REGISTRAR: DEAD})
    assert deletion.delete_leftovers(store, experiment, MODEL) == 2  # the version with its model, and the first model
    assert registry.versions(store, MODEL) == [1]
    there = {model.model_id for model in store.search_logged_models([experiment])}
    assert {kept, elsewhere} <= there
    assert len(there) == 3
    assert len(list(Path("mlartifacts").rglob("weights"))) == 3
    assert deletion.delete_leftovers(store, experiment, MODEL) == 0


def test_a_finished_registration_is_no_leftover_even_without_its_version(store: mlflow.MlflowClient) -> None:
    """A person who deletes a version in MLflow keeps its logged model."""
    experiment, run = training(store, "a")
    alive = registration._registrar()[registry.REGISTRAR]
    model_id = logged(store, experiment, run, alive)
    number = registration.register(store, run, MODEL, f"models:/{model_id}", {registry.MODEL_SHA256: "a"}, "")
    assert registry.REGISTRAR not in registry.tags(store, MODEL, number)
    assert registry.REGISTRAR not in store.get_logged_model(model_id).tags
    store.delete_model_version(MODEL, str(number))
    assert deletion.orphaned_models(store, experiment) == []


def test_a_twin_with_other_weights_stays(store: mlflow.MlflowClient) -> None:
    experiment, run = training(store, "a")
    for number, sha256 in enumerate(("a", "b", "a"), 1):
        model_id = logged(store, experiment, run, registration._registrar()[registry.REGISTRAR])
        tags = {registry.MODEL_SHA256: sha256}
        made = registration.register(store, run, MODEL, f"models:/{model_id}", tags, "")
        assert made == (1 if sha256 == "a" else number)
    assert registry.versions(store, MODEL) == [1, 2]
