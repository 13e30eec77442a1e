"""MLflow's SQLite file: check it before MLflow opens it, recover it when it is damaged, follow a moved folder.

MLflow itself retries a file that it can't open for minutes. This module imports neither MLflow nor SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

import psutil
from filelock import FileLock

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError

ARTIFACTS = "mlartifacts"  # folder of the artifacts, beside the file
DOCTOR = "`image-captioning doctor` fixes this"
_SQLITE = "sqlite:///"
_LOCK_SECONDS = 120
_BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's files, by their suffix
# Where MLflow stores the absolute places of artifacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_COUNTED = {"runs": "runs", "model_versions": "versions"}


def file_of(uri: str) -> Path | None:
    """Return the SQLite file of a tracking URI (`sqlite:///mlflow.db`); None for a server, and in memory."""
    name = uri.removeprefix(_SQLITE).partition("?")[0] if uri.startswith(_SQLITE) else ""
    return Path(name) if name not in ("", ":memory:") else None


def check(file: Path) -> None:
    """Check that MLflow can open the file, or create it.

    Raises:
        ConfigError: its folder does not exist.
        TemporaryError: the file is damaged.
    """
    if not file.absolute().parent.is_dir():
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: {_SQLITE}{file}: the folder {file.parent} does not exist; create it, or name another"
        )
    if why := damage(file):
        raise TemporaryError(f"{file}: MLflow's database is damaged ({why}); {DOCTOR}")


def damage(file: Path, thorough: bool = False) -> str | None:
    """Return what is wrong with the file, or None.

    Args:
        file: the SQLite file; a missing or an empty one is fine, as MLflow creates its tables.
        thorough: whether to read every page, not only the first ones and the length.
    """
    if not file.is_file() or file.stat().st_size == 0:
        return None
    try:
        with closing(_opened(file)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (page,), (pages,) = (database.execute(f"PRAGMA {p}").fetchone() for p in ("page_size", "page_count"))
            if file.stat().st_size < page * pages and not _journal(file):
                return f"{file.stat().st_size:,} bytes instead of {page * pages:,}"
            if thorough and (found := database.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                return " ".join(str(found[0]).split())
    except sqlite3.OperationalError:  # locked, or no permission
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None


def _journal(file: Path) -> bool:
    return any(file.with_name(f"{file.name}{end}").is_file() for end in ("-journal", "-wal"))


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True, timeout=20)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of ours from opening or mending the database in a folder."""
    lock = folder / paths.WORK / "locks" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=_LOCK_SECONDS):
        yield


def fullest(*folders: Path) -> Path:
    """Return the folder on the disk with the least free space."""
    there = [folder.absolute() if folder.is_dir() else Path.cwd() for folder in folders]
    return min(there, key=lambda folder: shutil.disk_usage(folder).free)


def users(file: Path) -> list[int]:
    """Return the ids of the other processes that have the file open or serve it (`mlflow server`)."""
    whole, found = str(file.absolute()), []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            opened = [one for one in process.open_files() if one.path == whole]
            if any(_is_same(process.pid, one.fd, file) for one in opened) or f"{_SQLITE}{whole}" in " ".join(
                process.cmdline()
            ):
                found.append(process.pid)
    return found


def _is_same(pid: int, descriptor: int, file: Path) -> bool:
    """Return whether an open file is this one; psutil also names a deleted file that was at its place."""
    link = Path(f"/proc/{pid}/fd/{descriptor}")
    return not link.exists() or link.samefile(file)


def recover(file: Path, aside: Path, create: Callable[[], object]) -> str:
    """Move a damaged database aside, and put a new one with its readable rows in its place; return what was done.

    Args:
        file: the damaged file.
        aside: an existing folder for it.
        create: lets MLflow create a new database in place of the file.
    """
    for end in _BESIDE:
        if (part := file.with_name(f"{file.name}{end}")).exists():
            shutil.move(part, aside / part.name)
    create()
    counts = _copy_rows(aside / file.name, file)
    found = " and ".join(f"{counts.get(table, 0)} {shown}" for table, shown in _COUNTED.items())
    again = "" if counts.get("model_versions") else "; `make register` registers this workspace's model again"
    return f"moved to {aside / file.name}; recovered {found}{again}"


def _copy_rows(damaged: Path, file: Path) -> dict[str, int]:
    """Copy every readable row to the same table of a new database; return the number of rows by table."""
    counts: dict[str, int] = {}
    with closing(_opened(damaged)) as old, closing(sqlite3.connect(file, timeout=20)) as new, new:
        with contextlib.suppress(sqlite3.DatabaseError):
            old.execute("PRAGMA writable_schema = ON")  # reads the tables whose definitions are readable
        for (table,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table == "alembic_version":  # the new database has the tables of this MLflow
                continue
            columns = [name for _, name, *_ in new.execute(f'PRAGMA table_info("{table}")')]
            rows = _readable_rows(old, table, columns)
            marks = ",".join("?" * len(columns))
            new.executemany(f'INSERT OR REPLACE INTO "{table}" VALUES ({marks})', rows)  # noqa: S608 - MLflow's name
            counts[table] = len(rows)
    return counts


def _readable_rows(old: sqlite3.Connection, table: str, columns: Sequence[str]) -> list[tuple[object, ...]]:
    """Return the rows of a table from its first one to a damaged page, and from its last one back to a damaged page."""
    names = ",".join(f'"{name}"' for name in columns)
    rows: dict[tuple[object, ...], None] = {}
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error):
            for row in old.execute(f'SELECT {names} FROM "{table}" ORDER BY rowid {order}'):  # noqa: S608
                rows[row] = None
    return list(rows)


def moved_from(file: Path) -> list[str]:
    """Return the places of artifacts in the database that belong to another folder, although the files are here.

    MLflow stores absolute places, so a workspace that was moved or copied still names its old folder.
    """
    if not file.is_file() or file.stat().st_size == 0:
        return []
    here = (file.absolute().parent / ARTIFACTS).as_uri()
    found = set()
    try:
        with closing(_opened(file)) as database:
            for name, location in database.execute("SELECT name, artifact_location FROM experiments"):
                for end in (name, quote(name)):
                    root = str(location).removesuffix(f"/{end}")
                    mine = (file.parent / ARTIFACTS / name).is_dir()
                    if root != location and root.endswith(f"/{ARTIFACTS}") and root != here and mine:
                        found.add(root)
    except sqlite3.Error:
        return []
    return sorted(root for root in found if file_path(root) != (file.absolute().parent / ARTIFACTS))


def file_path(location: str) -> Path:
    """Return the path of a place of artifacts (`file:///...` or a path)."""
    return Path(unquote(urlparse(location).path) if location.startswith("file:") else location)


def relocate(file: Path, old: str, aside: Path) -> str:
    """Replace an old root of artifacts with the folder beside the file; keep a copy of the database aside.

    Args:
        file: the SQLite file.
        old: one of `moved_from`.
        aside: an existing folder for the copy.
    """
    new, changed = (file.absolute().parent / ARTIFACTS).as_uri(), 0
    with closing(sqlite3.connect(file, timeout=20)) as database:
        with closing(sqlite3.connect(aside / file.name)) as copy:
            database.backup(copy)
        with database:
            for table, column in _LOCATIONS:
                done = database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names are constants
                    f" WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
                changed += done.rowcount
    return f"changed {changed} places to this folder; the database of before is {aside / file.name}"
