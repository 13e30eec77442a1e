"""Files of registered versions: the checkpoint, the index of the training captions, and the list of training pictures.

If MLflow's artifacts are on this machine they are used where they are; else they are downloaded into a bounded cache.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.models.weights import weights_hash
from pipeline.tracking import model_cache, registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MODEL = "models:/"


def checkpoint_of(model: str, cache_gb: float) -> Path:
    """Return the checkpoint folder of a registered model, downloaded if necessary.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/NAME` for the newest version.
        cache_gb: size limit of the cache, see `runtime.model_cache_gb`.

    Raises:
        ConfigError: the registry has no such model.
        TemporaryError: the registry can't be reached, or sent other weights than were registered.
    """
    return _folder_of(model, paths.MODEL.name, cache_gb)


def neighbours_of(model: str, cache_gb: float) -> Path:
    """Return the index of a registered model's training captions, downloaded if necessary.

    Args:
        model, cache_gb: see `checkpoint_of`.

    Raises:
        ConfigError: the registry has no such model, or the version has no index.
        TemporaryError: the registry can't be reached.
    """
    return _folder_of(model, paths.NEIGHBOURS.name, cache_gb)


def has_neighbours(model: str, version: int | str) -> bool:
    """Return whether a version has an index of its training captions."""
    import mlflow

    listed = mlflow.artifacts.list_artifacts(f"{_MODEL}{model}/{version}/artifacts")
    return any(Path(file.path).name == paths.NEIGHBOURS.name for file in listed)


def _folder_of(model: str, name: str, cache_gb: float) -> Path:
    from mlflow.exceptions import MlflowException

    from pipeline.tracking.runs import client, first_line, shown, uri

    store = client()
    try:
        version = _version_of(store, model)
        if name == paths.NEIGHBOURS.name and not has_neighbours(version.name, version.version):
            raise ConfigError(
                f"{_MODEL}{version.name}/{version.version}: has no index of its training captions; set"
                " evaluate.decoding.method to beam, or train a new version"
            )
        folder = _file_of(store, version, name, cache_gb)
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
    return folder


def training_pictures(model: str, version: int, cache_gb: float) -> Path | None:
    """Return the list of a version's training pictures, or None if it has none.

    Args:
        model: the registered model.
        version: its version.
        cache_gb: size limit of the cache, see `runtime.model_cache_gb`.
    """
    from pipeline.tracking.runs import FAILURES, client

    try:
        store = client()
        return _file_of(store, store.get_model_version(model, str(version)), registry.TRAINED_ON, cache_gb)
    except FAILURES:
        return None


def _version_of(store: MlflowClient, model: str) -> ModelVersion:
    name = model.removeprefix(_MODEL)
    if "@" in name:
        return store.get_model_version_by_alias(*name.split("@", 1))
    if "/" in name:
        return store.get_model_version(*name.split("/", 1))
    numbers = registry.versions(store, name)
    if not numbers:
        raise ConfigError(f"{model}: has no version in MLflow; run `dvc repro`, or `make register` if you already did")
    return store.get_model_version(name, str(numbers[-1]))


def _file_of(store: MlflowClient, version: ModelVersion, name: str, cache_gb: float) -> Path:
    """Return a file or folder among a version's artifacts."""
    import mlflow
    from mlflow.utils.uri import is_local_uri

    place = f"{_MODEL}{version.name}/{version.version}/artifacts/{name}"
    if is_local_uri(store.get_model_version_download_uri(version.name, version.version)):
        return Path(mlflow.artifacts.download_artifacts(place))

    def download(folder: Path) -> None:
        mlflow.artifacts.download_artifacts(place, dst_path=str(folder.absolute()))
        registered = version.tags.get(registry.MODEL_SHA256)
        if name == paths.MODEL.name and registered and weights_hash(folder / "artifacts" / name) != registered:
            raise TemporaryError(f"{_MODEL}{version.name}/{version.version}: MLflow sent other weights; run again")

    facts = [version.source, version.creation_timestamp, version.tags.get(registry.MODEL_SHA256), name]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = model_cache.cached(f"{version.name}-{version.version}-{key}", download, cache_gb)
    return folder / "artifacts" / name
