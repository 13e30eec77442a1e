"""Find and fix what kills, full disks and moves leave behind in the workspace and in MLflow.

Nothing is touched that a running process holds: the doctor needs the workspace to itself. What may be somebody's work
is moved to `.work/doctor/TIME`, never deleted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.config.params import load
from pipeline.runtime import dvc_files, leftovers, process_identity, workspace_lock
from pipeline.runtime.atomic_files import remove
from pipeline.tracking import database

NAME = "image-captioning doctor"
ASIDE = paths.WORK / "doctor"
_STAGES = ("ingest-*", "build", "finetune", "compare-*", "evaluate", "register", "promote")  # names of locks
_TRACKING_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Fault:
    """Something to fix.

    Attributes:
        what: the file and what is wrong with it.
        plan: what `fix` does, as an imperative.
        fix: fixes it and returns what was done.
    """

    what: str
    plan: str
    fix: Callable[[], str]


def examine(*, dry_run: bool = False, quiet: bool = False) -> str:
    """Print each fault and how it was fixed, and return the last line to print.

    Args:
        dry_run: whether to change nothing.
        quiet: whether to return "" if there is nothing to fix.

    Raises:
        DataError: in a dry run, there is something to fix.
        TemporaryError: another process is running in this workspace, or MLflow can't be reached.
        ConfigError: this is not the root of a workspace, or there is a fault in its settings.
    """
    if not paths.PARAMS.is_file():
        raise ConfigError(f"{paths.PARAMS}: not found in {Path.cwd()}; run this in the root of the repository")
    count = 0
    with _alone(dry_run):
        for fault in _faults():
            count += 1
            print(f"doctor: {fault.what}; " + (f"to fix it: {fault.plan}" if dry_run else fault.fix()), flush=True)
    if count and dry_run:
        raise DataError(f"found {count} fault{'s' if count > 1 else ''}; run `{NAME}` without --dry-run")
    if count:
        return f"fixed {count} fault{'s' if count > 1 else ''}"
    return "" if quiet else "found nothing to fix"


def visible_faults() -> list[str]:
    """Return the faults that can be seen without MLflow, in a sentence each; none while a process is running."""
    if workspace_lock.holder():
        return []
    try:
        with _stages_out(wait=0):
            return [fault.what for fault in (*_faults_of_dvc(), *_faults_of_files(), *_faults_of_database())]
    except TemporaryError:
        return []


@contextmanager
def _alone(dry_run: bool) -> Iterator[None]:
    """Keep flows, `dvc repro` and stages out of the workspace.

    Raises:
        TemporaryError: one of them is running.
    """
    if dry_run:
        if claim := workspace_lock.holder():
            pid = process_identity.pid_of(claim.process)
            raise TemporaryError(f"{claim.who} (process {pid}) is running in this workspace; wait for it to finish")
        with _stages_out(wait=0):
            yield
        return
    me = process_identity.identity()
    workspace_lock.take(f"`{NAME}`", me)
    try:
        with _stages_out(wait=1):
            yield
    finally:
        workspace_lock.give_back(me)


@contextmanager
def _stages_out(wait: float) -> Iterator[None]:
    """Hold the locks of all stages that ever ran here."""
    with ExitStack() as held:
        for pattern in _STAGES:
            for lock in sorted((paths.WORK / "locks").glob(f"{pattern}.lock")):
                try:
                    held.enter_context(FileLock(lock, timeout=wait))
                except Timeout:
                    raise TemporaryError(
                        f"{lock.stem} is running in this workspace; wait for it to finish, then run `{NAME}` again"
                    ) from None
        yield


def _faults() -> Iterator[Fault]:
    """Yield all faults. Each is found when those before it are fixed."""
    yield from _faults_of_dvc()
    yield from _faults_of_files()
    yield from _faults_of_database()
    yield from _faults_in_mlflow()


def _faults_of_dvc() -> Iterator[Fault]:
    if dvc_files.has_dead_lock():
        yield Fault(f"{dvc_files.RWLOCK}: the lock of a DVC that was killed", "remove it", _remove_dead_lock)
    if dvc_files.is_at_work():
        return
    for file in dvc_files.torn_data_files():
        yield Fault(
            f"{file}: cut off while DVC wrote it",
            "move it aside, and restore the committed one if there is one",
            partial(_restore, file),
        )


def _remove_dead_lock() -> str:
    return "removed" if dvc_files.remove_dead_lock() else "is in use now"


def _restore(file: Path) -> str:
    """Move a torn data file aside, and bring back the committed one."""
    place = _aside() / file.name
    shutil.move(file, place)
    words = ["git", "-c", "core.quotePath=false", "show", f"HEAD:./{file.as_posix()}"]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode == 0:
        file.write_bytes(done.stdout)
        if not dvc_files.is_torn(file):
            return f"moved to {place}; the last commit's is in its place"
        remove(file)
    again = "`dvc repro`" if file == paths.DVC_LOCK else f"`dvc add {file.with_suffix('')}`"
    return f"moved to {place}; {again} writes it again"


def _faults_of_files() -> Iterator[Fault]:
    for left in leftovers.half_written():
        yield Fault(
            f"{left}: left by a stage that was killed",
            "remove it, or restore the output if that is missing",
            partial(_put_right, left),
        )
    for folder in leftovers.dead_temporary_folders():
        yield Fault(f"{folder}: the temporary folder of a process that died", "remove it", partial(_remove, folder))


def _put_right(left: Path) -> str:
    return "restored the output" if leftovers.put_right(left) else "removed"


def _remove(folder: Path) -> str:
    remove(folder)
    return "removed"


def _database() -> Path | None:
    """Return MLflow's SQLite file, relative to this folder if it is there; None with a server."""
    file = database.file_of(os.environ.get(_TRACKING_URI, "sqlite:///mlflow.db"))
    return file.relative_to(Path.cwd()) if file and file.is_relative_to(Path.cwd()) else file


def _faults_of_database() -> Iterator[Fault]:
    file = _database()
    if file is None or not file.is_file():
        return
    if why := database.damage(file, thorough=True):
        yield Fault(
            f"{file}: MLflow's database is damaged ({why})",
            "move it aside, and recover the rows that can be read",
            partial(_recover, file),
        )
    for old in database.moved_from(file):
        yield Fault(
            f"{file}: names artifacts in {database.file_path(old)}, and they are in this folder",
            "change their places in the database, after a copy of it",
            partial(_relocate, file, old),
        )


def _recover(file: Path) -> str:
    from pipeline.tracking import runs

    _refuse_if_used(file)
    return database.recover(file, _aside(), runs.client)


def _relocate(file: Path, old: str) -> str:
    _refuse_if_used(file)
    with database.locked(file.parent):
        return database.relocate(file, old, _aside())


def _refuse_if_used(file: Path) -> None:
    if pids := database.users(file):
        raise TemporaryError(
            f"{file}: in use by process {', '.join(map(str, pids))}; end it (`image-captioning ui`, `mlflow server`),"
            f" then run `{NAME}` again"
        )


def _faults_in_mlflow() -> Iterator[Fault]:
    """Yield dead runs, and logged models and versions of interrupted registrations."""
    file = _database()
    if file is not None and (not file.is_file() or database.damage(file, thorough=True)):
        return
    try:
        params = load()
    except ConfigError:  # `status` and every other command say so
        return
    from pipeline.tracking import deletion, runs

    name = params.register_.model
    with runs.reachable():
        store = runs.client()
        experiment = store.get_experiment_by_name(params.register_.experiment)
        if experiment is None:
            return
        for run in runs.dead_runs(store, experiment.experiment_id):
            shown = run.info.run_name or run.info.run_id
            yield Fault(
                f"MLflow: the run {shown} is RUNNING, but its process died",
                "close it as FAILED",
                partial(_done, runs.close, store, run, words="closed"),
            )
        for number in deletion.cut_off_duplicates(store, name):
            yield Fault(
                f"models:/{name}/{number}: a duplicate of an older version; its registration was interrupted",
                "delete it",
                partial(_done, deletion.delete_version, store, name, number, words="deleted"),
            )
        for logged in deletion.orphaned_models(store, experiment.experiment_id):
            yield Fault(
                f"MLflow: the logged model {logged.model_id} belongs to an interrupted registration",
                "delete it",
                partial(_done, deletion.delete_logged_model, store, logged.model_id, words="deleted"),
            )


def _done(fix: Callable[..., None], *arguments: Any, words: str) -> str:
    fix(*arguments)
    return words


def _aside() -> Path:
    """Return a new folder for what is moved aside, named by the time."""
    ASIDE.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}"
    for number in range(1000):
        try:
            (folder := ASIDE / (f"{stem}.{number}" if number else stem)).mkdir()
        except FileExistsError:
            continue
        return folder
    raise TemporaryError(f"{ASIDE}: has too many folders of this second; run it again")
