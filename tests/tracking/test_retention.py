"""Registered versions of retrainings, in a real MLflow on SQLite."""

from __future__ import annotations

import shutil
import time
from argparse import Namespace
from pathlib import Path

import mlflow
import pytest

from pipeline.config import params, paths
from pipeline.config.errors import DataError
from pipeline.runtime.atomic_files import write_json
from pipeline.runtime.entrypoint import Done
from pipeline.tracking import deletion, registration, registry, retention, runs
from tests.conftest import set_params

MODEL = "image-captioning"


@pytest.fixture
def store(workspace: Path, mlflow_db: Path) -> mlflow.MlflowClient:
    shutil.copy(mlflow_db, workspace)
    return runs.client()


def logged(store: mlflow.MlflowClient, run: runs.TrainingRun, experiment: str) -> str:
    """A logged model with a file, as `registration.log_model` leaves one; gives its id."""
    model = store.create_logged_model(experiment, name="model", source_run_id=run.id)
    place = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    place.mkdir(parents=True)
    (place / "weights").write_text("x")
    store.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def version(store: mlflow.MlflowClient, key: str, retrained: bool = True) -> int:
    experiment = runs.experiment(store, MODEL)
    with runs.training_run(store, experiment, key, {}) as run:
        run.page("gallery.html", "x")
        run.metrics({"loss": 1.0}, 1)
        tags = {registry.MODEL_SHA256: f"sha of {key}"}
        model_id = logged(store, run, experiment)
        number = registration.register(store, run, MODEL, f"models:/{model_id}", tags, "")
    if retrained:
        registry.note(store, MODEL, number, {retention.COMMIT: f"commit of {key}", retention.MADE: "true"})
    return number


def files(name: str) -> int:
    return len(list(Path("mlartifacts").rglob(name)))


def do(what: str, **more: object) -> str:
    """Run a subcommand; return its last line."""
    done = retention.run(params.load(), Namespace(what=what, **more))
    return done if isinstance(done, str) else done.line


def result_of(what: str, **more: object) -> object:
    done = retention.run(params.load(), Namespace(what=what, **more))
    assert isinstance(done, Done)
    return done.result


def test_old_versions_of_retrainings_go_with_their_files_and_the_others_stay(store: mlflow.MlflowClient) -> None:
    version(store, "by hand", retrained=False)
    for key in "abcdef":
        version(store, key)
    registry.make_champion(store, MODEL, 4)
    registry.note(store, MODEL, 4, {registry.BEFORE: "2"})  # where a roll-back would go
    store.set_registered_model_alias(MODEL, "someones", "3")
    kept = result_of("delete-old-versions", keep=1)
    assert registry.versions(store, MODEL) == [1, 2, 3, 4, 7]
    assert files("weights") == files("gallery.html") == 5
    assert kept == {"commits": [f"commit of {key}" for key in "abcf"]}
    gone = runs.find_run(store, runs.experiment(store, MODEL), "d")
    assert gone
    assert [point.value for point in store.get_metric_history(gone.info.run_id, "loss")] == [1.0]
    assert "0 versions" in do("delete-old-versions", keep=1)


def test_what_a_registration_that_was_killed_left_goes_after_a_day(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(store, "a")
    experiment = runs.experiment(store, MODEL)
    with runs.training_run(store, experiment, "killed", {}) as run:
        logged(store, run, experiment)
    theirs = store.create_run(experiment)
    logged(store, runs.TrainingRun(store, theirs), experiment)
    assert "and 0 models without a version;" in do("delete-old-versions", keep=2)
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert "and 1 models without a version;" in do("delete-old-versions", keep=2)
    assert files("weights") == 2


def test_what_versions_of_other_models_are_made_of_stays(
    store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(store, "a")
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    set_params(Path.cwd(), {"register.model": "another", "register.experiment": MODEL})
    assert "and 0 models without a version;" in do("delete-old-versions", keep=1)
    store.create_registered_model("in-use")
    store.copy_model_version(f"models:/{MODEL}/1", "in-use")
    deletion.delete_version(store, MODEL, 1)
    assert "and 0 models without a version;" in do("delete-old-versions", keep=1)
    assert files("weights") == 1


def test_a_version_is_tagged_with_the_commit_of_its_data(store: mlflow.MlflowClient) -> None:
    for key in "ab":
        version(store, key, retrained=False)
    write_json(paths.REGISTER_REPORT, {"model": MODEL, "model_sha256": "sha of b", "training_key": "b"})
    do("tag-version", commit="c" * 40, branch="retrain/2026-01-05", since=time.time() + 9)
    tags = store.get_model_version(MODEL, "2").tags
    assert tags["retrain.commit"] == "c" * 40
    assert tags["retrain.branch"] == "retrain/2026-01-05"
    assert retention.MADE not in tags  # it was there before the retraining, so it is a person's
    do("tag-version", commit="c" * 40, branch="retrain/2026-01-05", since=time.time() - 99)
    assert retention.MADE in store.get_model_version(MODEL, "2").tags
    write_json(paths.REGISTER_REPORT, {"model": MODEL, "model_sha256": "another", "training_key": "b"})
    with pytest.raises(DataError, match="make register"):
        do("tag-version", commit="c", branch="b", since=0.0)


def test_a_retraining_starts_from_the_champion_or_where_params_say_while_there_is_none(
    store: mlflow.MlflowClient,
) -> None:
    assert "has no champion yet" in do("start")
    assert result_of("start") == "scratch"
    version(store, "a")
    assert "has no champion yet" in do("start")
    registry.make_champion(store, MODEL, 1)
    assert result_of("start") == "models:/image-captioning/1"


def test_runs_of_trainings_that_died_are_closed(store: mlflow.MlflowClient) -> None:
    experiment = runs.experiment(store, MODEL)
    run = store.create_run(experiment, run_name="git-dead", tags={"process": "4194304:1.0", "host": "elsewhere"})
    assert "git-dead" in do("close-dead-runs")
    assert store.get_run(run.info.run_id).info.status == "FAILED"
