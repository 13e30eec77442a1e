"""Log the fine-tuned model and register it as a version, once for the same weights.

`store` is an MLflow client, see `runs.client`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime import process_identity
from pipeline.tracking import deletion, registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.runs import TrainingRun


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
            name=registry.LOGGED,
            python_model=str(served),
            code_paths=[str(code)],
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            input_example={"image": [example]},
            pip_requirements=list(requirements),
            tags=_registrar(),
        )
    return str(info.model_uri)


def register(
    store: MlflowClient, run: TrainingRun, model: str, uri: str, tags: Mapping[str, str], description: str
) -> int:
    """Register a logged model as a new version of `model`, and return the number of the version with its weights.

    Other machines may register the same weights at the same time. MLflow numbers versions one after another, and a
    number is visible once the next one is given. So each registration sees all older versions, keeps its own if it is
    the oldest with these weights, and else deletes its own with its logged model.
    """
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it exists already
        store.create_registered_model(model, description="Writes captions for pictures.")
    made = store.create_model_version(
        model,
        source=uri,
        run_id=run.id,
        tags={**tags, **_registrar()},
        description=description,
        model_id=uri.removeprefix("models:/"),
    )
    number = int(made.version)
    logged = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    first = registry.find_version(store, model, tags[registry.MODEL_SHA256])
    if first and first.number < number:
        store.delete_model_version(model, str(number))
        if logged:
            deletion.delete_logged_model(store, logged)
        return first.number
    store.delete_model_version_tag(model, str(number), registry.REGISTRAR)
    if logged:
        with contextlib.suppress(MlflowException):  # it was logged without the mark
            store.delete_logged_model_tag(logged, registry.REGISTRAR)
    return number


def _registrar() -> dict[str, str]:
    return {registry.REGISTRAR: f"{socket.gethostname()} {process_identity.identity()}"}
