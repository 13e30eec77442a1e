"""Back up the data of a deployment to a folder, and restore them into an empty one.

A backup has `manifest.json`, with the SHA-256 of every file, and:

    mlflow.db or mlflow.dump, prefect.dump    databases: SQLite's online copy, or PostgreSQL's dump
    artifacts/                                MLflow's files
    dvc/                                      DVC's files, by their hash
    corrections/                              what people corrected on the page
    workspace.bundle                          the git repository, with what is not committed on the branch `BRANCH`

A restore checks every hash before it writes, and writes databases last: one that was cut off can be repeated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.deployment import places, postgresql
from pipeline.deployment.places import Files, Places
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.atomic_files import read_json, remove, swapped_in, write_json
from pipeline.serving.corrections import FOLDER as CORRECTIONS
from pipeline.serving.corrections import Corrections
from pipeline.tracking import database

BRANCH = "image-captioning-backup"
_FORMAT = 1
_MANIFEST, _SQLITE, _BUNDLE = "manifest.json", "mlflow.db", "workspace.bundle"
_PARTS = ("artifacts", "dvc", "corrections")


def back_up(folder: Path) -> str:
    """Write a backup to a new folder, and return the last line to print.

    Raises:
        ConfigError: the folder exists, or a setting is wrong.
        TemporaryError: something else uses the workspace, or a part can't be read.
    """
    places.check_workspace()
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; name a new folder")
    there = places.find()
    with _workspace_held("backup"), swapped_in(folder) as (place,):
        place.mkdir(mode=0o700, parents=True)  # with passwords' hashes, people's names and their pictures
        # Databases first: whatever they name was written before.
        _dump(there, place)
        counts = {
            "artifacts": _copy(place / "artifacts", there.artifacts),
            "dvc": _copy(place / "dvc", *there.objects),
        }
        _copy_corrections(place / "corrections")
        _bundle(place / _BUNDLE)
        files = {name: {"sha256": _hash(place / name), "bytes": size} for name, size in _sizes(place).items()}
        facts = {"format": _FORMAT, "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        write_json(place / _MANIFEST, {**facts, "version": version("image-captioning"), "files": files})
    total = sum(path.stat().st_size for path in folder.rglob("*"))
    return (
        f"{folder}: {', '.join(sorted(there.databases) or [_SQLITE])}, {counts['artifacts']:,} files of MLflow,"
        f" {counts['dvc']:,} of DVC; {total / 1e6:,.1f} MB"
    )


def restore(folder: Path) -> str:
    """Restore a backup into an empty deployment, and return the last line to print.

    Raises:
        ConfigError: this deployment has data already, or has other kinds of databases.
        DataError: the backup is damaged.
        TemporaryError: something else uses the workspace, or a part can't be written.
    """
    places.check_workspace()
    folder = folder.expanduser().absolute()
    files = _checked(folder)
    there = places.find()
    with _workspace_held("restore"):
        _check_empty(there, folder, files)
        if there.objects:
            _put(folder, "dvc", files, there.objects[0])
        _put(folder, "artifacts", files, there.artifacts)
        _put(folder, "corrections", files, Files(str(CORRECTIONS.absolute())))
        taken = _unbundle(folder / _BUNDLE) if _BUNDLE in files else ""
        for name, target in there.databases.items():
            if f"{name}.dump" in files:
                postgresql.restore(target, folder / f"{name}.dump")
        if _SQLITE in files and there.sqlite:
            _place_sqlite(folder / _SQLITE, there.sqlite)
    return f"restored {len(files):,} files from {folder}{taken}"


@contextmanager
def _workspace_held(command: str) -> Iterator[None]:
    """Keep retrainings, which delete old data, out of the workspace."""
    me = process_identity.identity()
    workspace_lock.take(f"`image-captioning {command}`", me)
    try:
        yield
    finally:
        workspace_lock.give_back(me)


def _dump(there: Places, place: Path) -> None:
    for name, source in there.databases.items():
        postgresql.dump(source, place / f"{name}.dump")
    if there.sqlite and there.sqlite.is_file():
        if why := database.damage(there.sqlite, thorough=True):
            raise TemporaryError(f"{there.sqlite}: MLflow's database is damaged ({why}); {database.DOCTOR}")
        with (
            closing(sqlite3.connect(there.sqlite, timeout=60)) as live,
            closing(sqlite3.connect(place / _SQLITE)) as copy,
        ):
            live.backup(copy)


def _copy(target: Path, *sources: Files) -> int:
    """Copy all files of the sources; of files with one name the first source's. Return how many there are."""
    names: set[str] = set()
    for source in sources:
        for name in source.sizes():
            if name not in names and not _is_temporary(name):
                source.get(name, target / name)
                names.add(name)
    return len(names)


def _is_temporary(name: str) -> bool:
    """Return whether a file is being written: DVC's and ours have such names."""
    return name.endswith((".tmp", ".partial", ".unpacked"))


def _copy_corrections(target: Path) -> None:
    if CORRECTIONS.is_dir():
        with Corrections().kept_still():
            shutil.copytree(CORRECTIONS, target)


def _bundle(file: Path) -> None:
    """Write the repository's branches and tags, and as a branch of its own the files with what is not committed."""
    if not Path(".git").exists() or not _git("rev-list", "--max-count=1", "--all"):
        return
    index = paths.WORK / "backup-index"
    remove(index)
    index.parent.mkdir(parents=True, exist_ok=True)
    try:
        head = _git("rev-parse", "HEAD")
        with_index = {"GIT_INDEX_FILE": str(index.absolute())}
        _git("read-tree", head, **with_index)
        _git("add", "--update", ".", **with_index)
        if new := [
            name for name in _git("ls-files", "--others", "--exclude-standard", "-z").split("\0") if _is_dvc(name)
        ]:
            _git("add", "--", *new, **with_index)
        tree = _git("write-tree", **with_index)
        who = {
            f"GIT_{role}_{what}": "image-captioning" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        commit = _git("commit-tree", tree, "-p", head, "-m", "The workspace at the time of the backup", **who)
        _git("update-ref", f"refs/heads/{BRANCH}", commit)
        _git("bundle", "create", "--quiet", str(file), "--branches", "--tags")
    finally:
        remove(index)
        _git("update-ref", "-d", f"refs/heads/{BRANCH}")


def _is_dvc(name: str) -> bool:
    """Return whether DVC wrote a file that is to be committed."""
    return name == str(paths.DVC_LOCK) or name.endswith((".dvc", "/.gitignore"))


def _unbundle(file: Path) -> str:
    """Bring the backup's branches into this repository as `restored/NAME`; return how to use them."""
    if not Path(".git").exists():
        return f"; the git repository is in {file}: `git clone -b {BRANCH} {file}`"
    _git("fetch", "--quiet", "--no-tags", str(file), "+refs/heads/*:refs/heads/restored/*")
    return f"; `git reset --hard restored/{BRANCH}` brings its params and .dvc files, then `dvc pull` its data"


def _git(*words: str, **environment: str) -> str:
    everything = {**os.environ, **environment}
    done = subprocess.run(["git", *words], env=everything, capture_output=True, text=True, check=False)
    if done.returncode:
        why = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
        raise TemporaryError(f"git {words[0]}: {why}; mend that, then run it again")
    return done.stdout.strip()


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of a backup, by their names, without the manifest."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return {name: size for name, size in named.items() if name != _MANIFEST}


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's files; all are there and have their hashes.

    Raises:
        ConfigError: the folder is no backup.
        DataError: the backup is damaged.
    """
    if not (folder / _MANIFEST).is_file():
        raise ConfigError(f"{folder}: has no {_MANIFEST}; name a folder that `image-captioning backup` wrote")
    try:
        manifest = read_json(folder / _MANIFEST)
        files, found = dict(manifest["files"]), manifest["format"]
        expected = {name: (str(facts["sha256"]), int(facts["bytes"])) for name, facts in files.items()}
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise DataError(f"{folder / _MANIFEST}: is damaged; use another backup") from None
    if found != _FORMAT:
        raise DataError(f"{folder / _MANIFEST}: format {found!r}, expected {_FORMAT}; use the release that wrote it")
    for name, (sha256, size) in expected.items():
        path = folder / name
        if not _is_name(name):
            raise DataError(f"{folder / _MANIFEST}: {name!r} is no file of a backup; use another backup")
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path}: is missing; use another backup")
        if path.stat().st_size != size or _hash(path) != sha256:
            raise DataError(f"{path}: has changed since it was backed up (SHA-256 differs); use another backup")
    return files


def _is_name(name: str) -> bool:
    parts = PurePosixPath(name).parts
    top = name in (_SQLITE, _BUNDLE, "mlflow.dump", "prefect.dump") or (len(parts) > 1 and parts[0] in _PARTS)
    return top and ".." not in parts and not name.startswith("/")


def _check_empty(there: Places, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Check that a restore overwrites nothing. Files of a restore that was cut off may be there.

    Raises:
        ConfigError: this deployment has data, or lacks a database of the backup.
    """
    empty = "restore into an empty deployment"
    for name in ("mlflow", "prefect"):
        if f"{name}.dump" in files and name not in there.databases:
            raise ConfigError(
                f"{folder / name}.dump: this deployment's {name} has no PostgreSQL database; set its address"
            )
    if _SQLITE in files and there.sqlite is None:
        raise ConfigError(f"{folder / _SQLITE}: is SQLite, but MLflow's database here is PostgreSQL; {empty} on SQLite")
    if there.sqlite and there.sqlite.exists():
        raise ConfigError(f"{there.sqlite}: exists already; {empty}")
    for target in there.databases.values():
        if not postgresql.is_empty(target):
            raise ConfigError(f"{target.shown}: has tables already; stop MLflow and Prefect, and {empty}")
    for part, target_files in (("artifacts", there.artifacts), ("corrections", Files(str(CORRECTIONS.absolute())))):
        mine = {name.partition("/")[2] for name in files if name.startswith(f"{part}/")}
        if other := [name for name in target_files.sizes() if name not in mine and not _is_temporary(name)]:
            raise ConfigError(f"{target_files.url}: has other files already, like {other[0]}; {empty}")


def _put(folder: Path, part: str, files: dict[str, dict[str, Any]], target: Files) -> None:
    """Copy a part's files to their place, except those that are there with their size."""
    mine = {name.partition("/")[2]: int(facts["bytes"]) for name, facts in files.items() if name.startswith(f"{part}/")}
    present = target.sizes() if mine else {}
    for name, size in mine.items():
        # Only DVC's names are hashes of the content.
        if part != "dvc" or present.get(name) != size:
            target.put(folder / part / name, name)


def _place_sqlite(source: Path, target: Path) -> None:
    with swapped_in(target) as (place,):
        shutil.copyfile(source, place)
    if moved := database.moved_from(target):
        aside = paths.WORK / "restore"
        aside.mkdir(parents=True, exist_ok=True)
        for old in moved:
            database.relocate(target, old, aside)
        remove(aside)
