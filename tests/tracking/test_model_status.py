from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import mlflow
import pytest

from pipeline.config import params, paths
from pipeline.config.errors import DataError
from pipeline.runtime.atomic_files import write_json
from pipeline.tracking import model_status, registration, registry, runs

MODEL = "image-captioning"


@pytest.fixture
def store(workspace: Path, mlflow_db: Path) -> mlflow.MlflowClient:
    shutil.copy(mlflow_db, workspace)
    return runs.client()


def version(store: mlflow.MlflowClient, key: str, cider: float, test: str, folder: Path) -> int:
    """A registered version whose run was measured on a test split."""
    experiment = runs.experiment(store, MODEL)
    (folder / "evaluate.json").write_text(json.dumps({"test_sha256": test}))
    with runs.training_run(store, experiment, key, {}) as run:
        run.replace_metrics({"test/CIDEr-D": cider, "test/CIDEr-D/nearest_picture": 9.0, "epoch/train_loss": 1.0})
        run.file(folder / "evaluate.json", again=True)
        tags = {registry.MODEL_SHA256: f"sha of {key}"}
        return registration.register(store, run, MODEL, f"runs:/{run.id}/model", tags, "")


def stands(key: str) -> dict:
    write_json(paths.REGISTER_REPORT, {"model": MODEL, "model_sha256": f"sha of {key}", "training_key": key})
    result: dict = model_status.run(params.load(), Namespace()).result
    return result


def test_a_model_is_told_beside_the_champion_and_whether_both_saw_the_same_test_pictures(
    store: mlflow.MlflowClient, tmp_path: Path
) -> None:
    for key, cider, test in (("a", 1.0, "x"), ("b", 1.5, "x"), ("c", 2.0, "y")):
        version(store, key, cider, test, tmp_path)
    assert stands("a")["champion"] is None
    store.set_registered_model_alias(MODEL, "champion", "1")
    assert stands("a")["champion"] is None  # it is itself
    found = stands("b")
    assert found["version"] == 2
    assert found["metrics"] == {"CIDEr-D": 1.5}
    assert found["run_name"] == "b"
    assert found["champion"] == {"version": 1, "metrics": {"CIDEr-D": 1.0}, "same_test": True}
    assert stands("c")["champion"]["same_test"] is False


def test_a_model_that_was_not_registered_is_told(store: mlflow.MlflowClient) -> None:
    with pytest.raises(DataError, match=r"reports/register\.json: not found"):
        model_status.run(params.load(), Namespace())
    with pytest.raises(DataError, match="make register"):
        stands("unknown")


def test_artifacts_lie_beside_the_database_wherever_the_command_runs(
    workspace: Path, mlflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a clone of the workspace, which is emptied one day, holds none."""
    shutil.copy(mlflow_db, workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])  # it remembers that of the test before
    store = runs.client()
    place = store.get_experiment(runs.experiment(store, MODEL)).artifact_location
    assert place == (workspace / "mlartifacts" / MODEL).as_uri()
    assert not list(Path().iterdir())
