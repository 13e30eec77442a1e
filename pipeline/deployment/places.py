"""Where a deployment keeps its data: databases, MLflow's artifacts, DVC's store. Read from the settings that exist.

MLflow's and Prefect's databases and artifacts have the names that their servers know: MLFLOW_BACKEND_STORE_URI,
MLFLOW_ARTIFACTS_DESTINATION and PREFECT_SERVER_DATABASE_CONNECTION_URL. Without them MLflow's are `mlflow.db` and
`mlartifacts/` in the workspace, and Prefect's database is not the workspace's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.deployment.files import Files
from pipeline.deployment.postgresql import Database
from pipeline.tracking import database

_BACKEND, _ARTIFACTS = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"
_TRACKING, _PREFECT = "MLFLOW_TRACKING_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_CACHE = Path(".dvc/cache")
OBJECTS = "files/md5"  # where DVC has its files, by their hash, in caches and in remotes


def check_workspace() -> None:
    """Check that the current folder is the root of a workspace.

    Raises:
        ConfigError: it is not.
    """
    if not paths.PARAMS.is_file():
        raise ConfigError(f"{paths.PARAMS}: not found in {Path.cwd()}; run this in the root of the repository")


@dataclass(frozen=True)
class Places:
    """The data of a deployment.

    Attributes:
        sqlite: MLflow's database if it is a SQLite file.
        databases: those on PostgreSQL, by `mlflow` and `prefect`.
        artifacts: MLflow's.
        objects: DVC's files, by their hash: the default remote, and the cache of this workspace. Files are restored to
            the first.
    """

    sqlite: Path | None
    artifacts: Files
    databases: Mapping[str, Database] = field(default_factory=dict)
    objects: tuple[Files, ...] = ()


def find() -> Places:
    """Return where the data of this workspace's deployment are.

    Raises:
        ConfigError: a setting is missing or unknown.
        TemporaryError: DVC can't be asked.
    """
    databases = {}
    backend = os.environ.get(_BACKEND) or os.environ.get(_TRACKING) or "sqlite:///mlflow.db"
    sqlite = database.file_of(backend)
    if backend.startswith("http"):
        raise ConfigError(
            f"{_TRACKING}: is a server; set {_BACKEND} and {_ARTIFACTS} to those of that server, so that its data can"
            " be read"
        )
    if found := Database.at(backend):
        databases["mlflow"] = found
    elif sqlite is None:
        raise ConfigError(f"{_BACKEND}: found {backend.partition(':')[0]}; only PostgreSQL and SQLite are known")
    if sqlite is None and not os.environ.get(_ARTIFACTS):
        raise ConfigError(f"{_ARTIFACTS}: not set; set it to the place of the artifacts of MLflow's server")
    artifacts = os.environ.get(_ARTIFACTS) or str((sqlite or Path()).absolute().parent / database.ARTIFACTS)
    if prefect := Database.at(os.environ.get(_PREFECT, "")):
        databases["prefect"] = prefect
    return Places(sqlite, Files(artifacts, _endpoint(artifacts)), databases, tuple(_objects()))


def _endpoint(url: str) -> dict[str, Any]:
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    return {"endpoint_url": endpoint} if endpoint and url.startswith("s3://") else {}


def _objects() -> Iterator[Files]:
    """Yield DVC's default remote, if there is one, and its cache."""
    if not Path(".dvc").is_dir():
        return
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--list"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TemporaryError(f".dvc/config: DVC can't read it ({done.stderr.strip()}); mend it, then run it again")
    settings = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if remote := settings.get("core.remote"):
        mine = {
            k.removeprefix(f"remote.{remote}."): v for k, v in settings.items() if k.startswith(f"remote.{remote}.")
        }
        yield Files(f"{_resolved(mine['url'])}/{OBJECTS}", _options(mine))
    yield Files(f"{_resolved(settings['cache.dir']) if 'cache.dir' in settings else _CACHE.absolute()}/{OBJECTS}")


def _resolved(url: str) -> str:
    """Return a URL as it is, and a path as absolute: DVC's config has paths relative to its own folder."""
    return url.rstrip("/") if "://" in url else str((_CACHE.parent / url).resolve())


def _options(remote: Mapping[str, str]) -> dict[str, Any]:
    """Return fsspec's options for a remote of DVC; what is not in its config comes from the environment."""
    if not remote["url"].startswith("s3://"):
        return {}
    names = {
        "endpointurl": "endpoint_url",
        "access_key_id": "key",
        "secret_access_key": "secret",
        "session_token": "token",
        "profile": "profile",
    }
    options: dict[str, Any] = {names[key]: value for key, value in remote.items() if key in names}
    if "region" in remote:
        options["client_kwargs"] = {"region_name": remote["region"]}
    return options
