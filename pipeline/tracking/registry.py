"""Registered versions of the model: find, create, alias, tag and delete them.

`store` is an MLflow client, see `runs.client`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime.atomic_files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.tracking.runs import TrainingRun

MODEL_SHA256 = "model_sha256"  # a tag: hash of the weights, see models/weights.py
TRAINED_ON = "training_pictures.txt"  # an artifact: fingerprints of the training pictures, see data/fingerprints.py
CHAMPION = "champion"  # the alias of the version in use
BEFORE = "champion_before"  # a tag: the previous champion
ROLLED_BACK = "rolled_back"  # a tag: the version was champion and was rolled back

_LOGGED = "model"  # name of the logged model
_DAY = 24 * 3600  # seconds
_MODEL = "models:/"
_TEST = "test/"  # prefix of test metrics


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    tags: dict[str, str]
    created: float  # seconds since 1970


def find_version(store: MlflowClient, model: str, model_sha256: str) -> Version | None:
    """Return the registered version with exactly these weights, or None."""
    found = store.search_model_versions(f"name = '{model}' and tags.{MODEL_SHA256} = '{model_sha256}'")
    ready = [_version(version) for version in found if version.status == "READY"]
    return max(ready, key=lambda version: version.number, default=None)


def versions(store: MlflowClient, model: str) -> list[int]:
    """Return the numbers of all registered versions of the model, in order."""
    return [version.number for version in versions_with_tags(store, model)]


def versions_with_tags(store: MlflowClient, model: str) -> list[Version]:
    """Return all registered versions of the model, in order."""
    found = map(_version, _search_versions(store, f"name = '{model}'"))
    return sorted(found, key=lambda version: version.number)


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), dict(found.tags), found.creation_timestamp / 1000)


def _search_versions(store: MlflowClient, wanted: str | None) -> list[ModelVersion]:
    """Return the versions that match a filter; without one, the versions of every model."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = store.search_model_versions(wanted, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def version_of_alias(store: MlflowClient, model: str, alias: str) -> int | None:
    """Return the number of the version with an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return int(store.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(store: MlflowClient, model: str) -> int | None:
    """Return the number of the champion, or None."""
    return version_of_alias(store, model, CHAMPION)


def tags(store: MlflowClient, model: str, version: int) -> dict[str, str]:
    """Return the tags of a version."""
    return dict(store.get_model_version(model, str(version)).tags)


def aliases_and_tags(store: MlflowClient, model: str, version: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the aliases and the tags of a version."""
    found = store.get_model_version(model, str(version))
    return tuple(found.aliases), dict(found.tags)


def note(store: MlflowClient, model: str, version: int, values: Mapping[str, str]) -> None:
    """Set tags of a version, and replace tags of the same names."""
    for key, value in values.items():
        store.set_model_version_tag(model, str(version), key, value)


def forget(store: MlflowClient, model: str, version: int, key: str) -> None:
    """Delete a tag of a version, if it exists."""
    if key in tags(store, model, version):
        store.delete_model_version_tag(model, str(version), key)


def make_champion(store: MlflowClient, model: str, version: int) -> None:
    """Give a version the champion alias."""
    store.set_registered_model_alias(model, CHAMPION, str(version))


def run_of(store: MlflowClient, model: str, version: int) -> Run:
    """Return the run of a registered version."""
    return store.get_run(store.get_model_version(model, str(version)).run_id)


@dataclass(frozen=True)
class Figures:
    """The test metrics of a run.

    Attributes:
        metrics: metrics of the model, without those of the baselines.
        test_sha256: hash of the test split, or None if the run has none.
    """

    metrics: dict[str, float]
    test_sha256: str | None


def figures(store: MlflowClient, run: Run) -> Figures:
    """Return the test metrics of a run."""
    from pipeline.tracking.runs import FAILURES

    test_sha256 = None
    if paths.EVALUATE_REPORT.name in {file.path for file in store.list_artifacts(run.info.run_id)}:
        with contextlib.suppress(*FAILURES, ValueError):
            file = store.download_artifacts(run.info.run_id, paths.EVALUATE_REPORT.name)
            test_sha256 = read_json(Path(file)).get("test_sha256")
    metrics = {
        key.removeprefix(_TEST): value
        for key, value in sorted(run.data.metrics.items())
        if key.startswith(_TEST) and "/" not in key.removeprefix(_TEST)
    }
    return Figures(metrics, test_sha256)


def aliased(store: MlflowClient, model: str) -> set[int]:
    """Return the numbers of the versions that have an alias; none if the model does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return {int(version) for version in store.get_registered_model(model).aliases.values()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return set()
        raise


def delete_version(store: MlflowClient, model: str, version: int) -> None:
    """Delete a registered version, and its logged model and the files of its run if no other version uses them.

    The run keeps its params and metrics.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    gone = store.get_model_version(model, str(version))
    store.delete_model_version(model, str(version))  # first, so that an interruption leaves no version without files
    others = _search_versions(store, None)
    model_id = _model_id(gone)
    if model_id and model_id not in map(_model_id, others) and gone.run_id not in _runs_of_copies(others):
        _delete_logged_model(store, model_id)
    if gone.run_id and gone.run_id not in {other.run_id for other in others}:
        get_artifact_repository(store.get_run(gone.run_id).info.artifact_uri).delete_artifacts()


def delete_orphaned_models(store: MlflowClient, experiment_id: str) -> int:
    """Delete logged models of our trainings that no version uses and that are a day old; return their number.

    A killed registration leaves such a model.
    """
    from pipeline.tracking.runs import TRAINING_KEY

    there = _search_versions(store, None)  # also of other models, which may share the experiment
    used, copied = set(map(_model_id, there)), _runs_of_copies(there)
    yesterday = (time.time() - _DAY) * 1000
    found = []
    token = None
    while True:
        page = store.search_logged_models([experiment_id], page_token=token)
        found += [logged for logged in page if logged.name == _LOGGED and logged.creation_timestamp < yesterday]
        token = page.token
        if not token:
            break
    orphans = [
        logged
        for logged in found
        if logged.model_id not in used
        and logged.source_run_id not in copied
        and TRAINING_KEY in store.get_run(logged.source_run_id).data.tags
    ]
    for logged in orphans:
        _delete_logged_model(store, logged.model_id)
    return len(orphans)


def _model_id(version: ModelVersion) -> str | None:
    """Return the id of a version's logged model; MLflow's SQL store has it only in the version's source."""
    source = str(version.source or "")
    return version.model_id or (source.removeprefix(_MODEL) if source.startswith(_MODEL) else None)


def _runs_of_copies(found: Sequence[ModelVersion]) -> set[str | None]:
    """Return the runs of versions that are copies of others (`models:/NAME/VERSION`), without own logged model."""
    return {version.run_id for version in found if "/" in (_model_id(version) or "")}


def _delete_logged_model(store: MlflowClient, model_id: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = store.get_logged_model(model_id).artifact_location
    store.delete_logged_model(model_id)
    get_artifact_repository(place).delete_artifacts()


def training_pictures(model: str, version: int) -> Path | None:
    """Return the list of a version's training pictures, or None if it has none."""
    import mlflow

    from pipeline.tracking.runs import FAILURES

    try:
        return Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}/artifacts/{TRAINED_ON}"))
    except FAILURES:
        return None


def log_model(
    run: TrainingRun,
    *,
    code: Path,
    served: Path,
    artifacts: Mapping[str, Path],
    example: str,
    requirements: Sequence[str],
) -> str:
    """Log the fine-tuned model as a `pyfunc` (models from code) of the run, and return its URI.

    Args:
        code: the package to include, so that the model can be served without this repository.
        served: the file that defines the model.
        artifacts: files and folders of the model's context, by name.
        example: a picture as a data: URL, for the input example.
        requirements: pinned pip requirements.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),  # bytes in Python; over HTTP base64 or a data: URL
        outputs=Schema([ColSpec("string", "caption"), ColSpec("string", "error")]),
        params=ParamSchema([ParamSpec("beams", "integer", 3)]),
    )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with mlflow.start_run(run_id=run.id):
        info = mlflow.pyfunc.log_model(
            name=_LOGGED,
            python_model=str(served),
            code_paths=[str(code)],
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            input_example={"image": [example]},
            pip_requirements=list(requirements),
        )
    return str(info.model_uri)


def register(
    store: MlflowClient, run: TrainingRun, model: str, uri: str, tags: Mapping[str, str], description: str
) -> int:
    """Register a logged model as a new version of `model`, and return the version's number."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it exists already
        store.create_registered_model(model, description="Writes captions for pictures.")
    version = store.create_model_version(
        model,
        source=uri,
        run_id=run.id,
        tags=dict(tags),
        description=description,
        model_id=uri.removeprefix("models:/"),
    )
    return int(version.version)


def checkpoint_of(model: str) -> Path:
    """Return the checkpoint folder of a registered model, downloaded if necessary.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/NAME` for the newest version.

    Raises:
        ConfigError: the registry has no such model.
        TemporaryError: the registry can't be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from pipeline.tracking.runs import client, first_line, shown, uri

    store = client()
    name = model.removeprefix("models:/")
    try:
        if "@" not in name and "/" not in name:
            numbers = versions(store, name)
            if not numbers:
                raise ConfigError(
                    f"{model}: has no version in MLflow; run `dvc repro`, or `make register` if you already did"
                )
            model = f"models:/{name}/{numbers[-1]}"
        folder = mlflow.artifacts.download_artifacts(f"{model}/artifacts/{paths.MODEL.name}")
    except MlflowException as error:
        raise ConfigError(
            f"{model}: not found in MLflow at {shown(uri())} ({first_line(error)});"
            " `image-captioning ui` shows the versions and aliases"
        ) from None
    except OSError as error:
        if error.errno is not None:  # an error of this machine; HTTP errors have no errno
            raise
        raise TemporaryError(
            f"{model}: can't download its files from MLflow at {shown(uri())} ({error}); run again"
        ) from None
    return Path(folder)
