"""`image-captioning doctor`: each fault is found, named in one line, and fixed; what is in use or whole stays."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pipeline.commands import doctor, status
from pipeline.config import params, paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.runtime import dvc_files, leftovers, process_identity, workspace_lock
from pipeline.tracking import database, registry, runs
from tests.conftest import ROOT, environment, run

COMMAND = (sys.executable, "-m", "pipeline.cli", "doctor")
SOURCE = "outs:\n- md5: ab555555555555555555555555555555.dir\n  size: 1\n  nfiles: 1\n  hash: md5\n  path: sample\n"
DEAD = "1:0-of-another-boot"


@pytest.fixture
def here(workspace: Path) -> Path:
    """A workspace whose checkpoint, which params.yaml names, exists."""
    return workspace


@pytest.fixture
def store(workspace: Path, mlflow_db: Path) -> object:
    shutil.copy(mlflow_db, workspace)
    return runs.client()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the doctor printed. A dry run found the same before, and a second run finds nothing."""
    before = sorted(str(file) for file in Path().rglob("*"))
    with pytest.raises(DataError, match="run `image-captioning doctor` without --dry-run"):
        doctor.examine(dry_run=True)
    seen = capsys.readouterr().out.splitlines()
    assert all("; to fix it: " in line for line in seen)
    assert sorted(str(file) for file in Path().rglob("*")) == before
    last = doctor.examine()
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition("; ")[0] for line in printed] == [line.partition("; ")[0] for line in seen]
    assert last == f"fixed {len(printed)} fault{'s' if len(printed) > 1 else ''}"
    assert doctor.examine() == "found nothing to fix"
    assert doctor.examine(quiet=True) == ""
    return printed


def test_after_a_kill_between_stages_dvc_works_again(clone: Callable[[], Path]) -> None:
    """`kill -9` while DVC writes its lock file leaves an empty one."""
    folder = clone()
    (folder / ".dvc/tmp").mkdir(exist_ok=True)
    (folder / dvc_files.RWLOCK).touch()
    assert "JSON structure is corrupted" in run(folder, "dvc", "status").stderr
    done = run(folder, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "doctor: .dvc/tmp/rwlock: the lock of a DVC that was killed; removed",
        "doctor: fixed 1 fault",
    ]
    assert run(folder, "dvc", "status").returncode == 0


def test_a_torn_source_comes_back_from_the_last_commit_and_the_torn_one_is_kept(
    clone: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clone()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = Path("data/raw/sample.dvc")
    whole = source.read_text()
    source.write_text(whole[:20])
    Path("data/raw/mine.dvc").write_text("outs:\n- md5: ")
    paths.DVC_LOCK.write_text("schema: '2.0'\nstages:\n")
    assert "doctor` fixes this" in run(folder, sys.executable, "-m", "flows.steps.commit_raw").stderr
    printed = lines(capsys)
    assert source.read_text() == whole
    assert printed[0].startswith("doctor: dvc.lock: cut off while DVC wrote it; moved to .work/doctor/")
    assert printed[0].endswith("`dvc repro` writes it again")
    assert printed[1].endswith("`dvc add data/raw/mine` writes it again")
    assert printed[2].endswith("the last commit's is in its place")
    assert sorted(file.read_text() for file in doctor.ASIDE.rglob("*.dvc")) == sorted([whole[:20], "outs:\n- md5: "])
    assert run(folder, "dvc", "status").returncode == 0


def test_half_written_outputs_and_temporary_folders_of_dead_processes_go(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data/.dataset.partial/train", "models/.finetune.replaced", ".work/captions/.a.json.partial"):
        Path(name).mkdir(parents=True)
    Path("models/.finetune.replaced/model.safetensors").write_text("the last good one")
    Path("reports").mkdir()
    Path("reports/.build.json.replaced").write_text("old")
    Path("reports/build.json").write_text("new")
    (leftovers.TEMPORARY / f"{DEAD}_abc").mkdir(parents=True)
    with leftovers.temporary_folder() as alive:
        printed = lines(capsys)
        assert alive.is_dir()
    assert len(printed) == 5
    assert (paths.MODEL / "model.safetensors").read_text() == "the last good one"
    assert Path("reports/build.json").read_text() == "new"
    assert not list(Path().rglob("*.partial")) + list(Path().rglob("*.replaced"))


def test_nothing_is_touched_while_another_process_is_at_work(here: Path) -> None:
    partial = Path("data/.dataset.partial")
    partial.mkdir(parents=True)
    me = process_identity.identity()
    other = process_identity.identity(psutil.Process().parent())
    workspace_lock.take("`dvc repro`", other)
    for dry_run in (False, True):
        with pytest.raises(TemporaryError, match="is running in this workspace"):
            doctor.examine(dry_run=dry_run)
    workspace_lock.give_back(other)
    with FileLock(".work/locks/build.lock"):  # a stage that was started by hand
        held = subprocess.run(
            COMMAND, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False
        )
        assert held.returncode == 75
        assert held.stderr.startswith("doctor: build is running in this workspace")
        assert held.stderr.count("\n") == 1
    assert partial.is_dir()
    assert workspace_lock.holder() is None
    assert doctor.examine() == "fixed 1 fault"
    assert me == process_identity.identity()


def test_status_names_a_fault_and_the_doctor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc_files.RWLOCK.parent.mkdir(parents=True)
    dvc_files.RWLOCK.touch()
    Path("mlflow.db").write_text("no database at all")
    found = status.read_status()
    assert found["faults"] == [
        ".dvc/tmp/rwlock: the lock of a DVC that was killed",
        "mlflow.db: MLflow's database is damaged (file is not a database)",
    ]
    assert found["next"][0] == {"command": "image-captioning doctor", "why": "fix the faults named above"}
    status.show_status()
    assert "file is not a database); `image-captioning doctor` fixes this" in " ".join(capsys.readouterr().out.split())
    assert dvc_files.RWLOCK.exists()


def test_the_doctor_says_where_it_must_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run this in the root of the repository"):
        doctor.examine()


def test_a_dead_run_is_closed_and_a_live_one_goes_on(store: object, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = runs.experiment(store, params.load().register_.experiment)
    with runs.training_run(store, experiment, "a" * 64, {}, "dead") as dead:
        pass
    store.set_tag(dead.id, "process", DEAD)
    store.update_run(dead.id, "RUNNING")
    with runs.training_run(store, experiment, "b" * 64, {}, "alive") as alive:
        assert lines(capsys) == ["doctor: MLflow: the run dead is RUNNING, but its process died; closed"]
        assert store.get_run(alive.id).info.status == "RUNNING"
    assert store.get_run(dead.id).info.status == "FAILED"


def fill(store: object, versions: int) -> None:
    experiment = runs.experiment(store, "image-captioning")
    store.create_registered_model("image-captioning")
    for number in range(versions):
        with runs.training_run(store, experiment, f"{number:064}", {}, f"run {number}") as training:
            training.metrics({f"metric-{k}": float(k) for k in range(40)}, 1)
            training.page("page.html", "<p>")
            store.create_model_version(
                "image-captioning", f"runs:/{training.id}/model", training.id, tags={registry.MODEL_SHA256: f"{number}"}
            )


def destroy(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "header":
        data[:4096] = b"\0" * 4096
    elif how == "middle":
        for start in range(len(data) // 2 // 4096 * 4096, len(data) // 2 + 5 * 4096, 4096):
            data[start : start + 64] = b"\xff" * 64
    elif how == "cut":
        del data[len(data) // 2 :]
    else:
        data = bytearray(b"not a database")
    file.unlink()  # this process still has it open
    file.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["middle", *(pytest.param(how, marks=pytest.mark.slow) for how in ("header", "cut", "all"))]
)
def test_a_damaged_database_is_moved_aside_and_mlflow_works_again(store: object, how: str) -> None:
    fill(store, 5)
    file = Path("mlflow.db")
    destroy(file, how)
    damaged = file.read_bytes()
    with pytest.raises(DataError):
        doctor.examine(dry_run=True)
    assert file.read_bytes() == damaged
    done = run(Path.cwd(), *COMMAND, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("doctor: mlflow.db: MLflow's database is damaged (")
    (kept,) = doctor.ASIDE.rglob("mlflow.db")
    assert kept.read_bytes() == damaged
    assert database.damage(file, thorough=True) is None
    asked = run(Path.cwd(), sys.executable, "-c", _COUNT, PYTHONPATH=str(ROOT))
    assert asked.returncode == 0, asked.stderr
    versions = int(asked.stdout.split()[-1])
    assert versions == (5 if how in ("middle", "cut") else 0)
    assert f"; recovered {versions} runs and {versions} versions" in first
    assert ("make register" in first) == (versions == 0)


_COUNT = """
from pipeline.tracking import registry, runs
print(len(registry.versions(runs.client(), "image-captioning")))
"""


def test_a_database_that_a_process_uses_is_not_mended(store: object) -> None:
    file = Path("mlflow.db")
    destroy(file, "all")
    code = f"file = open({str(file.absolute())!r}); input()"
    user = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while user.pid not in database.users(file):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(TemporaryError, match=f"in use by process {user.pid}"):
            doctor.examine()
        assert file.read_bytes() == b"not a database"
    finally:
        user.kill()
        user.communicate()


def test_a_moved_workspace_finds_its_artifacts_again(
    store: object, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, 1)
    experiment = runs.experiment(store, "image-captioning")
    (old,) = store.search_runs([experiment])
    moved = workspace.with_name("moved here")
    workspace.rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    (line,) = lines(capsys)
    assert f"names artifacts in {workspace}/mlartifacts, and they are in this folder" in line
    found = runs.client().get_run(old.info.run_id)
    assert str(moved).replace(" ", "%20") in found.info.artifact_uri
    assert [file.path for file in runs.client().list_artifacts(old.info.run_id)] == ["page.html"]
    (copy,) = doctor.ASIDE.rglob("mlflow.db")
    with closing(sqlite3.connect(copy)) as before:
        assert str(workspace) in before.execute("SELECT artifact_uri FROM runs").fetchone()[0].replace("%20", " ")


def test_make_demo_mends_first() -> None:
    """`make -n` prints the commands: the doctor comes before DVC, which could not start after a kill."""
    shown = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < shown.index("pipeline.cli doctor --quiet") < shown.index("dvc repro")
