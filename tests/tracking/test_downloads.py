"""Downloaded versions: a bounded cache for a remote MLflow, nothing in the temporary folder."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import mlflow
import pytest

from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.models.weights import weights_hash
from pipeline.runtime import process_identity
from pipeline.tracking import downloads, model_cache, registration, registry, runs
from tests.tracking.test_registration import server  # noqa: F401 - a fixture

MODEL = "image-captioning"
MB = 2**20


def fill(content: str, size: int) -> object:
    def write(folder: Path) -> None:
        (folder / "file").write_text(content + "x" * size)

    return write


def entries() -> list[str]:
    return sorted(place.name for place in model_cache.FOLDER.iterdir() if place.suffix != ".users")


@pytest.fixture
def _others_use_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are used by a process that has died."""
    monkeypatch.setattr(process_identity, "identity", lambda: "1:0-of-another-boot")


@pytest.mark.usefixtures("_others_use_nothing")
def test_the_least_recently_used_entry_goes_first() -> None:
    for number in range(3):
        model_cache.cached(f"v{number}", fill(f"{number}", MB), max_gb=1)
        os.utime(model_cache.FOLDER / f"v{number}", (number, number))
    model_cache.cached("v0", fill("is not called", 0), max_gb=1)
    assert (model_cache.FOLDER / "v0" / "file").read_text().startswith("0")
    model_cache.cached("v3", fill("3", MB), max_gb=0.0035)
    assert entries() == ["v0", "v2", "v3"]


def test_what_a_running_process_uses_stays(workspace: Path) -> None:
    mine = model_cache.cached("mine", fill("1", MB), max_gb=0)
    model_cache.cached("other", fill("2", MB), max_gb=0)
    assert mine.is_dir()
    for place in model_cache.FOLDER.glob("*.users"):
        for user in place.iterdir():
            user.rename(user.with_name("1:0-of-another-boot"))
    model_cache.cached("third", fill("3", MB), max_gb=0)
    assert entries() == ["third"]


def test_a_damaged_entry_is_downloaded_again(workspace: Path) -> None:
    place = model_cache.cached("a", fill("whole", 10), max_gb=1)
    (place / "file").write_text("damaged")
    assert model_cache.cached("a", fill("whole again", 0), max_gb=1) == place
    assert (place / "file").read_text() == "whole again"


def test_a_failed_download_leaves_nothing(workspace: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise TemporaryError("the server has gone")

    with pytest.raises(TemporaryError):
        model_cache.cached("a", fail, max_gb=1)
    assert entries() == []


def test_several_at_once_download_once(workspace: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(1)
        (folder / "file").write_text("x" * MB)

    threads = [threading.Thread(target=model_cache.cached, args=("a", write, 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def registered(folder: Path, tag: str | None = None) -> int:
    """Register a version with a checkpoint and a list of training pictures; `tag` is another hash of its weights."""
    checkpoint = folder / "version" / "artifacts" / paths.MODEL.name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(os.urandom(MB))
    (checkpoint.parent / registry.TRAINED_ON).write_text("a list")
    store = runs.client()
    experiment = runs.experiment(store, MODEL)
    with runs.training_run(store, experiment, folder.name, {}) as run:
        logged = store.create_logged_model(experiment, name=registry.LOGGED, source_run_id=run.id)
        store.log_model_artifacts(logged.model_id, str(folder / "version"))
        store.finalize_logged_model(logged.model_id, "READY")
        tags = {registry.MODEL_SHA256: tag or weights_hash(checkpoint)}
        return registration.register(store, run, MODEL, f"models:/{logged.model_id}", tags, "")


@pytest.mark.services
def test_a_remote_version_is_downloaded_once_and_leaves_no_temporary_file(
    server: str,  # noqa: F811
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    number = registered(tmp_path / "a")
    weights = (tmp_path / "a/version/artifacts" / paths.MODEL.name / "model.safetensors").read_bytes()
    folders = set()
    for _ in range(3):
        folder = downloads.checkpoint_of(f"models:/{MODEL}/{number}", 1)
        folders.add(folder)
        assert (folder / "model.safetensors").read_bytes() == weights
        listed = downloads.training_pictures(MODEL, number, 1)
        assert listed
        assert listed.read_text() == "a list"
    assert len(folders) == 1
    assert downloads.checkpoint_of(f"models:/{MODEL}", 1) in folders
    assert len(entries()) == 2
    assert list(temporary.rglob("*")) == []
    wrong = registered(tmp_path / "b", "of other weights")
    with pytest.raises(TemporaryError, match="MLflow sent other weights"):
        downloads.checkpoint_of(f"models:/{MODEL}/{wrong}", 1)


def test_a_version_on_this_machine_is_used_where_it_is(workspace: Path, mlflow_db: Path, tmp_path: Path) -> None:
    Path("mlflow.db").write_bytes(mlflow_db.read_bytes())
    folder = downloads.checkpoint_of(f"models:/{MODEL}/{registered(tmp_path / 'a')}", 1)
    assert folder.is_relative_to(Path("mlartifacts").absolute())
    assert not model_cache.FOLDER.exists()
