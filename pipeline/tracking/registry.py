"""Registered versions of the model: found, made, named by an alias, noted on, and deleted.

What a version is made of lies beside its run, so `tracking` is the way to the store; a `store` here is its client.
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

MODEL_SHA256 = "model_sha256"  # a tag: of the weights, see `model.weights`
TRAINED_ON = (
    "training_pictures.txt"  # stands with a version: the pictures that it was trained on, see data/fingerprints.py
)
CHAMPION = "champion"  # the alias of the version in use
BEFORE = "champion_before"  # a tag: the version that was champion before this one
ROLLED_BACK = "rolled_back"  # a tag: it was champion, and was taken back

_LOGGED = "model"  # the name of what is logged
_DAY = 24 * 3600  # seconds
_MODEL = "models:/"
_TEST = "test/"  # begins the names of test figures


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    tags: dict[str, str]
    created: float  # seconds since 1970


def find_version(store: MlflowClient, model: str, model_sha256: str) -> Version | None:
    """The registered version that has exactly these weights, if there is one."""
    found = store.search_model_versions(f"name = '{model}' and tags.{MODEL_SHA256} = '{model_sha256}'")
    ready = [_version(version) for version in found if version.status == "READY"]
    return max(ready, key=lambda version: version.number, default=None)


def versions(store: MlflowClient, model: str) -> list[int]:
    """The numbers of all registered versions of the model, in order."""
    return [version.number for version in versions_with_tags(store, model)]


def versions_with_tags(store: MlflowClient, model: str) -> list[Version]:
    """All registered versions of the model, in order."""
    found = map(_version, _search_versions(store, f"name = '{model}'"))
    return sorted(found, key=lambda version: version.number)


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), dict(found.tags), found.creation_timestamp / 1000)


def _search_versions(store: MlflowClient, wanted: str | None) -> list[ModelVersion]:
    """The versions that meet a condition; where there is none, those of every model."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = store.search_model_versions(wanted, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def version_of_alias(store: MlflowClient, model: str, alias: str) -> int | None:
    """The number of the version that an alias names, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return int(store.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(store: MlflowClient, model: str) -> int | None:
    """The version in use, if there is one."""
    return version_of_alias(store, model, CHAMPION)


def tags(store: MlflowClient, model: str, version: int) -> dict[str, str]:
    """What is noted with a version."""
    return dict(store.get_model_version(model, str(version)).tags)


def note(store: MlflowClient, model: str, version: int, values: Mapping[str, str]) -> None:
    """Note something with a version, in place of what was noted under the same names."""
    for key, value in values.items():
        store.set_model_version_tag(model, str(version), key, value)


def forget(store: MlflowClient, model: str, version: int, key: str) -> None:
    """Take back what was noted with a version under a name, if anything was."""
    if key in tags(store, model, version):
        store.delete_model_version_tag(model, str(version), key)


def make_champion(store: MlflowClient, model: str, version: int) -> None:
    """Let a version be the one in use."""
    store.set_registered_model_alias(model, CHAMPION, str(version))


def run_of(store: MlflowClient, model: str, version: int) -> Run:
    """The run that a registered version came from."""
    return store.get_run(store.get_model_version(model, str(version)).run_id)


@dataclass(frozen=True)
class Figures:
    """The test figures of a run.

    Attributes:
        metrics: of the model alone, not of what it was compared with.
        test_sha256: of the test split that they were measured on, where the run tells.
    """

    metrics: dict[str, float]
    test_sha256: str | None


def figures(store: MlflowClient, run: Run) -> Figures:
    """What a run tells of its test figures."""
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
    """The numbers of the versions that some alias names; none where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return {int(version) for version in store.get_registered_model(model).aliases.values()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return set()
        raise


def delete_version(store: MlflowClient, model: str, version: int) -> None:
    """Delete a registered version, its logged model, and the files of its run where no other version has the same.

    The run stays, with params, curves and figures.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    gone = store.get_model_version(model, str(version))
    store.delete_model_version(model, str(version))  # first: cut off here, it leaves files, and no version without any
    others = _search_versions(store, None)
    model_id = _model_id(gone)
    if model_id and model_id not in map(_model_id, others) and gone.run_id not in _runs_of_copies(others):
        _delete_logged_model(store, model_id)
    if gone.run_id and gone.run_id not in {other.run_id for other in others}:
        get_artifact_repository(store.get_run(gone.run_id).info.artifact_uri).delete_artifacts()


def delete_orphaned_models(store: MlflowClient, experiment_id: str) -> int:
    """Delete the models that trainings of ours logged and no version has, if they are a day old; gives their number.

    A registration that was killed leaves one.
    """
    from pipeline.tracking.runs import TRAINING_KEY

    there = _search_versions(store, None)  # of other models too, which may have the same experiment
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
    """The logged model that a version is; MLflow's SQL store keeps it in the version's source only."""
    source = str(version.source or "")
    return version.model_id or (source.removeprefix(_MODEL) if source.startswith(_MODEL) else None)


def _runs_of_copies(found: Sequence[ModelVersion]) -> set[str | None]:
    """The runs of versions that are copies of others (`models:/NAME/VERSION`), with no logged model of their own."""
    return {version.run_id for version in found if "/" in (_model_id(version) or "")}


def _delete_logged_model(store: MlflowClient, model_id: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = store.get_logged_model(model_id).artifact_location
    store.delete_logged_model(model_id)
    get_artifact_repository(place).delete_artifacts()


def training_pictures(model: str, version: int) -> Path | None:
    """The list of pictures that a version was trained on; None where the version does not tell."""
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
    """Log the fine-tuned model as a `pyfunc` (models from code) beside the run; returns its URI.

    Args:
        code: the package that the model takes along, so that it is served without this repository.
        served: the file that defines the model.
        artifacts: files and folders that it finds in its context, by name.
        example: a picture as a data: URL, for the input example.
        requirements: pinned, as pip reads them.
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
    """Register a logged model as a new version of `model`; returns the version's number."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is there already
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
    """The checkpoint's folder of a registered model, downloaded where it is not on this machine.

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
                raise ConfigError(f"{model}: has no version in MLflow; run `dvc repro`, or `make register` if you did")
            model = f"models:/{name}/{numbers[-1]}"
        folder = mlflow.artifacts.download_artifacts(f"{model}/artifacts/{paths.MODEL.name}")
    except MlflowException as error:
        raise ConfigError(
            f"{model}: not to be had from MLflow at {shown(uri())} ({first_line(error)});"
            " `make ui` shows the versions and aliases that there are"
        ) from None
    except OSError as error:
        if error.errno is not None:  # this machine's; that of an HTTP answer has none
            raise
        raise TemporaryError(
            f"{model}: MLflow at {shown(uri())} does not give its files ({error}); run again"
        ) from None
    return Path(folder)
