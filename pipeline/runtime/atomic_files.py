"""Files that are whole or not there: outputs swapped in at the end, hashes, JSON and JSON Lines."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # ends the name of an output that is being written; .dvcignore names it too
REPLACED = ".replaced"  # ends the name of an output that is being replaced


@contextmanager
def swapped_in(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Give a new place beside each of `targets`; move all into place once the block has ended well.

    The place for `reports/x.json` is `reports/.x.json.partial`, on the same file system, so that a move
    is a rename. A block that fails leaves every target as it was. What an earlier run that was killed left
    behind is cleared away first. A target may be a file or a folder, whichever the block makes.
    """
    places = tuple(target.parent / f".{target.name}{PARTIAL}" for target in targets)
    for target, place in zip(targets, places, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
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
    """Move every place to its target, or none: whatever interrupts this, all old outputs are put back."""
    new = []
    try:
        for target, place in zip(targets, places, strict=True):
            if target.exists():  # a folder can't be renamed over another, so the old one steps aside
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


def _recover(target: Path) -> None:
    """Put back the old folder where a run was killed in the moment between the two renames."""
    if _replaced(target).exists() and not target.exists():
        _replaced(target).rename(target)
    remove(_replaced(target))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(*paths: Path) -> str:
    """SHA-256 (hexadecimal) over the names and contents of files, and of all files below folders.

    A folder's own name does not count, so a folder that was moved keeps its hash.
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
    """Write `value` as JSON that a person can read; equal values give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[Any]:
    """Read one JSON value a line.

    Lines end at a line feed only: captions may hold U+2028 and its like, at which `str.splitlines` would cut.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
