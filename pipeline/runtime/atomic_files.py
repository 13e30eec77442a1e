"""Atomic outputs (written beside their target, then renamed into place), hashes, JSON and JSON Lines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # suffix of an output while it is being written; .dvcignore names it too
REPLACED = ".replaced"  # suffix of an old output while it is being replaced


@contextmanager
def swapped_in(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path beside each target; rename all to their targets when the block succeeds.

    The temporary path of `reports/x.json` is `reports/.x.json.partial`, on the same file system, so that moving it is
    a rename. If the block fails, every target keeps its old content. Leftovers of a killed run are removed first. A
    target may be a file or a folder.
    """
    places = tuple(target.parent / f".{target.name}{PARTIAL}" for target in targets)
    for target, place in zip(targets, places, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        remove(place)
    try:
        yield places
        _swap(targets, places)
    finally:
        for place in places:
            remove(place)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}{REPLACED}"


def _swap(targets: Sequence[Path], places: Sequence[Path]) -> None:
    """Rename every temporary path to its target, or none: if anything interrupts this, all old outputs are restored."""
    new = []
    try:
        for target, place in zip(targets, places, strict=True):
            if target.exists():  # a folder cannot be renamed over another
                target.rename(_replaced(target))
            new.append(target)
            place.rename(target)
    except BaseException:
        for target in new:
            if _replaced(target).exists():
                remove(target)
                _replaced(target).rename(target)
            else:
                remove(target)
        raise
    for target in targets:
        remove(_replaced(target))


def recover(target: Path) -> bool:
    """Restore the old output if a run was killed between the two renames, else remove it; return whether it was."""
    restored = _replaced(target).exists() and not target.exists()
    if restored:
        _replaced(target).rename(target)
    remove(_replaced(target))
    return restored


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 (hexadecimal) over the names and contents of files, and of all files below folders.

    A folder's own name does not count, so a folder keeps its hash when it is moved.
    """
    digest = hashlib.sha256()
    for path in paths:
        below = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in below:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; equal values give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[Any]:
    """Yield one JSON value per line.

    Only a line feed ends a line: captions may contain U+2028 and the like, where `str.splitlines` would split.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
