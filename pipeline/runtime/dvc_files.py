"""DVC's files that a kill or a full disk can leave broken: its lock file, `dvc.lock` and the `.dvc` files.

They are read and written without DVC, which can't start while its lock file is torn. Paths are relative to the root of
the workspace, the current folder.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import paths
from pipeline.runtime import process_identity

RWLOCK = Path(".dvc/tmp/rwlock")  # which process reads or writes which path; torn, it stops every `dvc` command
_RWLOCK_GUARD = Path(".dvc/tmp/rwlock.lock")  # DVC holds it while it edits RWLOCK
_REPOSITORY_LOCK = Path(".dvc/tmp/lock")  # DVC holds it while it writes `dvc.lock` and `.dvc` files
_SHORTEST_HASH = 3  # characters; DVC refuses shorter ones
_DEPTHS = ("*.dvc", "*/*.dvc", "*/*/*.dvc", "*/*/*/*.dvc")  # data/raw/NAME/FILE.dvc is the deepest


def has_dead_lock() -> bool:
    """Return whether DVC's lock file is torn, or all processes that it names have died."""
    with _unheld(_RWLOCK_GUARD) as unheld:
        return unheld and _is_dead()


def remove_dead_lock() -> bool:
    """Remove DVC's lock file if it is torn or all processes that it names have died; return whether it was removed."""
    with _unheld(_RWLOCK_GUARD) as unheld:
        dead = unheld and _is_dead()
        if dead:
            RWLOCK.unlink(missing_ok=True)
        return dead


def _is_dead() -> bool:
    """Return whether nobody holds RWLOCK.

    DVC identifies the holders by process id alone, and after a reboot another process may have that id.
    """
    try:
        written = RWLOCK.stat().st_mtime
        pids = _pids()
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, AttributeError, KeyError):  # DVC was killed while it wrote the file
        return True
    return bool(pids) and not any(process_identity.began_before(pid, written) for pid in pids)


def _pids() -> set[int]:
    listed = json.loads(RWLOCK.read_text(encoding="utf-8"))
    readers = [reader for those in listed.get("read", {}).values() for reader in those]
    return {int(one["pid"]) for one in [*listed.get("write", {}).values(), *readers]}


def is_at_work() -> bool:
    """Return whether a DVC process holds this repository now."""
    with _unheld(_RWLOCK_GUARD) as guard, _unheld(_REPOSITORY_LOCK) as repository:
        if not guard or not repository:
            return True
        try:
            written = RWLOCK.stat().st_mtime
            return any(process_identity.began_before(pid, written) for pid in _pids())
        except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
            return False


@contextmanager
def _unheld(lock: Path) -> Iterator[bool]:
    """Hold one of DVC's locks for the block; yield False if a DVC process holds it.

    DVC locks with `flock`, which the system releases when a process dies. DVC waits up to 3 seconds.
    """
    try:
        file = lock.open("r+")
    except FileNotFoundError:  # no DVC ran here
        yield True
        return
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def torn_data_files() -> list[Path]:
    """Return the torn ones of `dvc.lock` and the `.dvc` files of this workspace."""
    found = [file for pattern in _DEPTHS for file in sorted(Path().glob(pattern))]
    files = [file for file in found if file.is_file() and not any(part.startswith(".") for part in file.parts)]
    return [file for file in [paths.DVC_LOCK, *files] if file.is_file() and is_torn(file)]


def is_torn(path: Path) -> bool:
    """Return whether `dvc.lock` or a `.dvc` file was cut off while it was written, so that DVC refuses to read it."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError, ValueError):
        return True
    if not isinstance(content, dict):
        return True
    if path.suffix == ".dvc":
        if "outs" not in content:  # DVC writes them last
            return not content.keys().isdisjoint(("md5", "frozen", "deps"))
        return not _are_files(content["outs"])
    stages = content.get("stages", {})
    return None in content.values() or not isinstance(stages, dict) or not all(map(_is_stage, stages.values()))


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not stage.get("cmd"):
        return False
    params = stage.get("params", {})
    whole = isinstance(params, dict) and all(isinstance(values, dict) for values in params.values())
    return whole and all(_are_files(stage.get(kind, [])) for kind in ("deps", "outs"))


def _are_files(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(one, dict) and _is_file(one) for one in entries)


def _is_file(entry: dict[Any, Any]) -> bool:
    texts = [entry[key] for key in ("path", "md5", "hash") if key in entry]
    if not entry.get("path") or None in entry.values() or not all(isinstance(text, str) for text in texts):
        return False
    return len(entry.get("md5", "whole")) >= _SHORTEST_HASH
