"""The manifest of a backup: which files it has, with their SHA-256. A backup without one is not whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.config.errors import ConfigError, DataError
from pipeline.deployment.files import Files
from pipeline.runtime.atomic_files import write_json
from pipeline.runtime.progress import progress_bar

CHANGED = "has changed since it was backed up (SHA-256 differs); use another backup"
NAME, SQLITE, BUNDLE = "manifest.json", "mlflow.db", "workspace.bundle"
_FORMAT = 1
_FILES = (SQLITE, BUNDLE, "mlflow.dump", "prefect.dump")
_FOLDERS = ("artifacts", "dvc", "corrections")


def facts_of(path: Path) -> dict[str, Any]:
    """Return what the manifest has of a file: `sha256` and `bytes`."""
    with path.open("rb") as stream:
        return {"sha256": sha256(stream), "bytes": path.stat().st_size}


def sha256(stream: IO[bytes]) -> str:
    """Return the SHA-256 (hexadecimal) of what is read from a stream."""
    digest = hashlib.sha256()
    while part := stream.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a backup to a folder."""
    write_json(folder / NAME, {"format": _FORMAT, **facts})


def checked(backup: Files) -> dict[str, dict[str, Any]]:
    """Return the manifest's files; all are there and have their hashes.

    Raises:
        ConfigError: the place has no backup, or one that was cut off.
        DataError: the backup is damaged.
        TemporaryError: the backup can't be read.
    """
    present, where = backup.sizes(), f"{backup.url}/{NAME}"
    if NAME not in present:
        raise ConfigError(
            f"{backup.url}: has no {NAME}; name a whole backup that `image-captioning backup` wrote"
            + (" (this one was cut off)" if present else "")
        )
    with backup.opened(NAME) as stream:
        content = stream.read()
    try:
        manifest = json.loads(content)
        files, found = dict(manifest["files"]), manifest["format"]
        expected = {name: (str(facts["sha256"]), int(facts["bytes"])) for name, facts in files.items()}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where}: is damaged; use another backup") from None
    if found != _FORMAT:
        raise DataError(f"{where}: format {found!r}, expected {_FORMAT}; use the release that wrote it")
    for name in expected:
        if not _is_name(name):
            raise DataError(f"{where}: {name!r} is no file of a backup; use another backup")
    for name, (digest, size) in progress_bar(expected.items(), desc="restore: checking", unit=" files"):
        path = f"{backup.url}/{name}"
        if name not in present or (backup.is_local and Path(path).is_symlink()):
            raise DataError(f"{path}: is missing; use another backup")
        if present[name] != size or _sha256_of(backup, name) != digest:
            raise DataError(f"{path}: {CHANGED}")
    return files


def _sha256_of(backup: Files, name: str) -> str:
    with backup.opened(name) as stream:
        return sha256(stream)


def _is_name(name: str) -> bool:
    parts = name.split("/")
    known = name in _FILES or (len(parts) > 1 and parts[0] in _FOLDERS)
    return known and not {"", ".", ".."}.intersection(parts)  # keys of a bucket may have all of them
