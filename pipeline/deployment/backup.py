"""Back up the data of a deployment to a folder or a bucket, and restore them into an empty one.

A backup has `manifest.json`, with the SHA-256 of every file, and:

    mlflow.db or mlflow.dump, prefect.dump    databases: SQLite's online copy, or PostgreSQL's dump
    artifacts/                                MLflow's files
    dvc/                                      DVC's files, by their hash
    corrections/                              what people corrected on the page
    workspace.bundle                          the git repository, with what is not committed on a branch of its own

The manifest is written last: without it a backup is not whole, and is not restored. A restore checks every hash before
it writes, and writes databases last: one that was cut off can be repeated.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.deployment import manifest, places, postgresql, repository
from pipeline.deployment.files import Files
from pipeline.deployment.places import Places
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.atomic_files import remove, swapped_in
from pipeline.runtime.progress import progress_bar
from pipeline.serving.corrections import FOLDER as CORRECTIONS
from pipeline.serving.corrections import Corrections
from pipeline.tracking import database

_SCRATCH = paths.WORK / "backup"
_Facts = dict[str, dict[str, Any]]  # of the manifest: of each file
_OWN = "BACKUP_"  # before the names of AWS's variables: those of the backups' bucket only


class _Writer:
    """Writes the files of a new backup.

    Attributes:
        place: where to write each file under its name, before `add`.
        facts: the manifest's, of the files that were added.

    Args:
        place: the backup itself, or a folder from which files move to the bucket.
        bucket: the backup if it is in a bucket.
    """

    def __init__(self, place: Path, bucket: Files | None = None) -> None:
        self.place = place
        self._bucket = bucket
        self.facts: _Facts = {}

    def add(self, name: str) -> None:
        """Take a file that is complete into the backup."""
        self.facts[name] = manifest.facts_of(self.place / name)
        self._move(name)

    def finish(self) -> None:
        """Write the manifest, which makes the backup whole."""
        made = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        manifest.write(self.place, {"made": made, "version": version("image-captioning"), "files": self.facts})
        self._move(manifest.NAME)

    def _move(self, name: str) -> None:
        if self._bucket:
            self._bucket.put(self.place / name, name)
            remove(self.place / name)


def back_up(target: str) -> str:
    """Write a backup to a new folder or a new prefix of a bucket, and return the last line to print.

    Args:
        target: a folder, or `s3://BUCKET/PREFIX`.

    Raises:
        ConfigError: the target exists, or a setting is wrong.
        TemporaryError: something else uses the workspace, or a part can't be read or written.
    """
    places.check_workspace()
    there = places.find()
    _check_apart(target, there)
    with _workspace_held("backup"), _new(target) as writer:
        # Databases first: whatever they name was written before.
        _dump(there, writer)
        counts = {"artifacts": _copy(writer, "artifacts", there.artifacts), "dvc": _copy(writer, "dvc", *there.objects)}
        _copy_corrections(writer)
        if repository.bundle(writer.place / manifest.BUNDLE):
            writer.add(manifest.BUNDLE)
        writer.finish()
    total = sum(facts["bytes"] for facts in writer.facts.values())
    return (
        f"{_shown(target)}: {', '.join(sorted(there.databases) or [manifest.SQLITE])},"
        f" {counts['artifacts']:,} files of MLflow, {counts['dvc']:,} of DVC; {total / 1e6:,.1f} MB;"
        f" `image-captioning restore {_shown(target)}` restores it"
    )


def restore(source: str) -> str:
    """Restore a backup into an empty deployment, and return the last line to print.

    Args:
        source: a folder, or `s3://BUCKET/PREFIX`. A backup in a bucket is read twice: to check it, and to restore it.

    Raises:
        ConfigError: there is no backup, or this deployment has data already, or has other kinds of databases.
        DataError: the backup is damaged.
        TemporaryError: something else uses the workspace, or a part can't be read or written.
    """
    places.check_workspace()
    backup = _files(source)
    files = manifest.checked(backup)
    there = places.find()
    with _workspace_held("restore"), _scratch() as scratch:
        _check_empty(there, backup, files)
        if there.objects:
            _put(backup, "dvc", files, there.objects[0], scratch)
        _put(backup, "artifacts", files, there.artifacts, scratch)
        _put(backup, "corrections", files, Files(str(CORRECTIONS.absolute())), scratch)
        taken = ""
        if manifest.BUNDLE in files:
            with _whole(backup, manifest.BUNDLE, files, scratch) as file:
                taken = repository.unbundle(file, f"{backup.url}/{manifest.BUNDLE}")
        for name, target in there.databases.items():
            if f"{name}.dump" in files:
                with _whole(backup, f"{name}.dump", files, scratch) as file:
                    postgresql.restore(target, file)
        if manifest.SQLITE in files and there.sqlite:
            with _whole(backup, manifest.SQLITE, files, scratch) as file:
                _place_sqlite(file, there.sqlite)
    return f"restored {len(files):,} files from {_shown(source)}{taken}"


def _is_bucket(url: str) -> bool:
    """Return whether a backup's place is in a bucket.

    Raises:
        ConfigError: it is a URL of another kind.
    """
    scheme, is_url, _ = url.partition("://")
    if is_url and scheme != "s3":
        raise ConfigError(f"{url}: {scheme} is not known; name a folder or s3://BUCKET/PREFIX")
    return bool(is_url)


def _files(url: str) -> Files:
    if not _is_bucket(url):
        return Files(_shown(url))
    names = {"endpoint_url": "AWS_ENDPOINT_URL_S3", "key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"}
    options: dict[str, Any] = {key: own for key, name in names.items() if (own := os.environ.get(_OWN + name))}
    if region := os.environ.get(f"{_OWN}AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    return Files(url, options)


def _shown(url: str) -> str:
    return url.rstrip("/") if _is_bucket(url) else str(Path(url).expanduser().absolute())


def _check_apart(target: str, there: Places) -> None:
    """Check that a backup will not be a part of what is backed up.

    Raises:
        ConfigError: it will be.
    """
    if os.environ.get(f"{_OWN}AWS_ENDPOINT_URL_S3"):  # another store, whose buckets may have the same names
        return
    for place in (there.artifacts, *there.objects):
        if f"{_shown(target)}/".startswith(f"{place.url}/"):
            raise ConfigError(f"{target}: is in {place.url}, which is backed up; name another place")


@contextmanager
def _new(target: str) -> Iterator[_Writer]:
    """Yield the writer of a new backup. If the block fails, nothing of it stays."""
    if not _is_bucket(target):
        folder = Path(_shown(target))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists already; name a new folder")
        with swapped_in(folder) as (place,):
            place.mkdir(mode=0o700, parents=True)  # with passwords' hashes, people's names and their pictures
            yield _Writer(place)
        return
    bucket = _files(target)
    if found := bucket.sizes():
        what = (
            "has a backup already" if manifest.NAME in found else f"has other files already, like {next(iter(found))}"
        )
        raise ConfigError(f"{bucket.url}: {what}; name a new prefix, or delete what is there")
    with _scratch() as place:
        writer = _Writer(place, bucket)
        try:
            yield writer
        except BaseException:
            with suppress(ConfigError, TemporaryError):
                bucket.delete({*writer.facts, manifest.NAME} & bucket.sizes().keys())
            raise


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield an empty folder that only this account can read. Outside /tmp, which may be memory."""
    remove(_SCRATCH)
    _SCRATCH.mkdir(mode=0o700, parents=True)
    try:
        yield _SCRATCH.absolute()
    finally:
        remove(_SCRATCH)


@contextmanager
def _workspace_held(command: str) -> Iterator[None]:
    """Keep retrainings, which delete old data, out of the workspace."""
    me = process_identity.identity()
    workspace_lock.take(f"`image-captioning {command}`", me)
    try:
        yield
    finally:
        workspace_lock.give_back(me)


def _dump(there: Places, writer: _Writer) -> None:
    for name, source in there.databases.items():
        postgresql.dump(source, writer.place / f"{name}.dump")
        writer.add(f"{name}.dump")
    if there.sqlite and there.sqlite.is_file():
        if why := database.damage(there.sqlite, thorough=True):
            raise TemporaryError(f"{there.sqlite}: MLflow's database is damaged ({why}); {database.DOCTOR}")
        with (
            closing(sqlite3.connect(there.sqlite, timeout=60)) as live,
            closing(sqlite3.connect(writer.place / manifest.SQLITE)) as copy,
        ):
            live.backup(copy)
        writer.add(manifest.SQLITE)


def _copy(writer: _Writer, part: str, *sources: Files) -> int:
    """Copy all files of the sources; of files with one name the first source's. Return how many there are."""
    wanted: dict[str, Files] = {}
    for source in sources:
        for name in source.sizes():
            if not _is_temporary(name):
                wanted.setdefault(name, source)
    for name, source in progress_bar(wanted.items(), desc=f"backup: {part}", unit=" files"):
        source.get(name, writer.place / part / name)
        writer.add(f"{part}/{name}")
    return len(wanted)


def _is_temporary(name: str) -> bool:
    """Return whether a file is being written: DVC's and ours have such names."""
    return name.endswith((".tmp", ".partial", ".unpacked"))


def _copy_corrections(writer: _Writer) -> None:
    if CORRECTIONS.is_dir():
        target = writer.place / "corrections"
        with Corrections().kept_still():
            shutil.copytree(CORRECTIONS, target)
        for name in Files(str(target)).sizes():
            writer.add(f"corrections/{name}")


def _check_empty(there: Places, backup: Files, files: _Facts) -> None:
    """Check that a restore overwrites nothing. Files of a restore that was cut off may be there.

    Raises:
        ConfigError: this deployment has data, or lacks a database of the backup.
    """
    empty = "restore into an empty deployment"
    for name in ("mlflow", "prefect"):
        if f"{name}.dump" in files and name not in there.databases:
            raise ConfigError(
                f"{backup.url}/{name}.dump: this deployment's {name} has no PostgreSQL database; set its address"
            )
    if manifest.SQLITE in files and there.sqlite is None:
        raise ConfigError(
            f"{backup.url}/{manifest.SQLITE}: is SQLite, but MLflow's database here is PostgreSQL; {empty} on SQLite"
        )
    if there.sqlite and there.sqlite.exists():
        raise ConfigError(f"{there.sqlite}: exists already; {empty}")
    for target in there.databases.values():
        if not postgresql.is_empty(target):
            raise ConfigError(f"{target.shown}: has tables already; stop MLflow and Prefect, and {empty}")
    for part, target_files in (("artifacts", there.artifacts), ("corrections", Files(str(CORRECTIONS.absolute())))):
        mine = {name.partition("/")[2] for name in files if name.startswith(f"{part}/")}
        if other := [name for name in target_files.sizes() if name not in mine and not _is_temporary(name)]:
            raise ConfigError(f"{target_files.url}: has other files already, like {other[0]}; {empty}")


def _put(backup: Files, part: str, files: _Facts, target: Files, scratch: Path) -> None:
    """Copy a part's files to their place, except those that are there with their size."""
    mine = {name.partition("/")[2]: int(facts["bytes"]) for name, facts in files.items() if name.startswith(f"{part}/")}
    present = target.sizes() if mine else {}
    for name, size in progress_bar(mine.items(), desc=f"restore: {part}", unit=" files"):
        # Only DVC's names are hashes of the content.
        if part != "dvc" or present.get(name) != size:
            with _whole(backup, f"{part}/{name}", files, scratch) as path:
                target.put(path, name)


@contextmanager
def _whole(backup: Files, name: str, files: _Facts, scratch: Path) -> Iterator[Path]:
    """Yield a local path of a backup's file. A copy from a bucket is checked again, because it was read again."""
    with backup.local(name, scratch) as path:
        if not backup.is_local and manifest.facts_of(path)["sha256"] != files[name]["sha256"]:
            raise DataError(f"{backup.url}/{name}: {manifest.CHANGED}")
        yield path


def _place_sqlite(source: Path, target: Path) -> None:
    with swapped_in(target) as (place,):
        shutil.copyfile(source, place)
    if moved := database.moved_from(target):
        aside = paths.WORK / "restore"
        aside.mkdir(parents=True, exist_ok=True)
        for old in moved:
            database.relocate(target, old, aside)
        remove(aside)
