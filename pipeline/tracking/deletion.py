"""Delete versions, and what interrupted registrations left in MLflow.

A registration marks its logged model and its version with its process (`registry.REGISTRAR`) until it is finished. If
that process has died, the mark shows that nothing will finish them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.runtime import process_identity
from pipeline.tracking import registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_DAY = 24 * 3600  # seconds
_MODEL = "models:/"


def delete_version(store: MlflowClient, model: str, version: int) -> None:
    """Delete a registered version, and its logged model and the files of its run if no other version uses them.

    The run keeps its params and metrics.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    gone = store.get_model_version(model, str(version))
    store.delete_model_version(model, str(version))  # first, so that an interruption leaves no version without files
    others = registry.search_versions(store, None)
    model_id = _model_id(gone)
    if model_id and model_id not in map(_model_id, others) and gone.run_id not in _runs_of_copies(others):
        delete_logged_model(store, model_id)
    if gone.run_id and gone.run_id not in {other.run_id for other in others}:
        get_artifact_repository(store.get_run(gone.run_id).info.artifact_uri).delete_artifacts()


def orphaned_models(store: MlflowClient, experiment_id: str, *, of_a_day: bool = False) -> list[LoggedModel]:
    """Return the logged models of our trainings that no version uses because their registration was interrupted.

    Args:
        store: the MLflow client.
        experiment_id: the experiment of the trainings.
        of_a_day: whether to return also those without the mark of a registration, if they are a day old.
    """
    from pipeline.tracking.runs import TRAINING_KEY

    there = registry.search_versions(store, None)  # also of other models, which may share the experiment
    used, copied = set(map(_model_id, there)), _runs_of_copies(there)
    return [
        logged
        for logged in _logged_models(store, experiment_id)
        if logged.model_id not in used
        and logged.source_run_id not in copied
        and (_is_cut_off(logged.tags, logged.creation_timestamp) or (of_a_day and _is_old(logged.creation_timestamp)))
        and TRAINING_KEY in store.get_run(logged.source_run_id).data.tags
    ]


def _logged_models(store: MlflowClient, experiment_id: str) -> list[LoggedModel]:
    found: list[LoggedModel] = []
    token = None
    while True:
        page = store.search_logged_models([experiment_id], page_token=token)
        found += [logged for logged in page if logged.name == registry.LOGGED and logged.source_run_id]
        token = page.token
        if not token:
            return found


def cut_off_duplicates(store: MlflowClient, model: str) -> list[int]:
    """Return the versions whose registration died before it saw that an older version has the same weights."""
    named = registry.aliased(store, model)
    first: dict[str, int] = {}
    found = []
    for version in registry.versions_with_tags(store, model):
        sha256 = version.tags.get(registry.MODEL_SHA256, "")
        if first.setdefault(sha256, version.number) == version.number or not sha256:
            continue
        if _is_cut_off(version.tags, version.created * 1000) and version.number not in named:
            found.append(version.number)
    return found


def delete_leftovers(store: MlflowClient, experiment_id: str, model: str) -> int:
    """Delete the duplicates and the logged models that interrupted registrations left; return their number."""
    duplicates = cut_off_duplicates(store, model)
    for number in duplicates:
        delete_version(store, model, number)
    orphans = orphaned_models(store, experiment_id)
    for logged in orphans:
        delete_logged_model(store, logged.model_id)
    return len(duplicates) + len(orphans)


def delete_logged_model(store: MlflowClient, model_id: str) -> None:
    """Delete a logged model and its files."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = store.get_logged_model(model_id).artifact_location
    get_artifact_repository(place).delete_artifacts()  # first: an interrupted deletion can be repeated
    store.delete_logged_model(model_id)


def _is_cut_off(tags: Mapping[str, str], created: float) -> bool:
    """Return whether a registration marked something and died; on another machine: did not finish within a day.

    Args:
        tags: tags of a logged model or a version.
        created: milliseconds since 1970.
    """
    host, _, process = tags.get(registry.REGISTRAR, "").partition(" ")
    if not process:
        return False
    return not process_identity.is_alive(process) if host == socket.gethostname() else _is_old(created)


def _is_old(created: float) -> bool:
    return created < (time.time() - _DAY) * 1000


def _model_id(version: ModelVersion) -> str | None:
    """Return the id of a version's logged model; MLflow's SQL store has it only in the version's source."""
    source = str(version.source or "")
    return version.model_id or (source.removeprefix(_MODEL) if source.startswith(_MODEL) else None)


def _runs_of_copies(found: Sequence[ModelVersion]) -> set[str | None]:
    """Return the runs of versions that are copies of others (`models:/NAME/VERSION`), without own logged model."""
    return {version.run_id for version in found if "/" in (_model_id(version) or "")}
