"""Registered versions of the model: find, create, alias and tag them.

`store` is an MLflow client, see `runs.client`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.config import paths
from pipeline.runtime.atomic_files import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_SHA256 = "model_sha256"  # a tag: hash of the weights, see models/weights.py
TRAINED_ON = "training_pictures.txt"  # an artifact: fingerprints of the training pictures, see data/fingerprints.py
CHAMPION = "champion"  # the alias of the version in use
BEFORE = "champion_before"  # a tag: the previous champion
ROLLED_BACK = "rolled_back"  # a tag: the version was champion and was rolled back

REGISTRAR = "registrar"  # a tag: host and process of a registration that has not finished, see deletion.py
LOGGED = "model"  # name of the logged model

_TEST = "test/"  # prefix of test metrics


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    tags: dict[str, str]
    created: float  # seconds since 1970


def find_version(store: MlflowClient, model: str, model_sha256: str) -> Version | None:
    """Return the registered version with exactly these weights, the oldest if there are several, or None."""
    found = store.search_model_versions(f"name = '{model}' and tags.{MODEL_SHA256} = '{model_sha256}'")
    ready = [_version(version) for version in found if version.status == "READY"]
    return min(ready, key=lambda version: version.number, default=None)


def versions(store: MlflowClient, model: str) -> list[int]:
    """Return the numbers of all registered versions of the model, in order."""
    return [version.number for version in versions_with_tags(store, model)]


def versions_with_tags(store: MlflowClient, model: str) -> list[Version]:
    """Return all registered versions of the model, in order."""
    found = map(_version, search_versions(store, f"name = '{model}'"))
    return sorted(found, key=lambda version: version.number)


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), dict(found.tags), found.creation_timestamp / 1000)


def search_versions(store: MlflowClient, wanted: str | None) -> list[ModelVersion]:
    """Return MLflow's versions that match a filter; without one, the versions of every model."""
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
        with contextlib.suppress(*FAILURES, ValueError), TemporaryDirectory() as folder:
            file = store.download_artifacts(run.info.run_id, paths.EVALUATE_REPORT.name, folder)
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
