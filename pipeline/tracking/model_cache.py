"""Cache of the files of registered versions that were downloaded from a remote MLflow, in `.work/models`.

When the cache is too large, the least recently used files go first, but none that a running process uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pipeline.config import paths
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import remove
from pipeline.runtime.checksummed import checksummed_folder, is_intact

FOLDER = paths.WORK / "models"
_LOCK = paths.WORK / "locks" / "models.lock"
_USERS = ".users"  # suffix of the folder that names the processes that use an entry
_GB = 10**9


def cached(key: str, fill: Callable[[Path], None], max_gb: float) -> Path:
    """Return the folder of an entry; if it is missing or damaged, create it with `fill`, which gets an empty folder.

    No process removes the entry while this process runs.

    Args:
        key: identifies the content; a file name.
        fill: writes the content into a folder.
        max_gb: size limit of the cache in gigabytes; entries in use may exceed it.
    """
    folder = FOLDER / key
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_LOCK):
        user = FOLDER / f"{key}{_USERS}" / process_identity.identity()
        user.parent.mkdir(parents=True, exist_ok=True)
        user.touch()
        if not is_intact(folder):
            remove(folder)
            with checksummed_folder(folder) as place:
                fill(place)
        os.utime(folder)
        _evict(max_gb)
    return folder


def _evict(max_gb: float) -> None:
    """Remove the least recently used entries until the rest fits."""
    entries = [folder for folder in FOLDER.iterdir() if folder.is_dir() and not folder.name.endswith(_USERS)]
    entries.sort(key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in entries}
    total = sum(sizes.values())
    for folder in entries:
        if total <= max_gb * _GB:
            return
        users = folder.with_name(f"{folder.name}{_USERS}")
        if any(process_identity.is_alive(user.name) for user in users.glob("*")):
            continue
        remove(folder)
        remove(users)
        total -= sizes[folder]
