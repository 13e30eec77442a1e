"""Folders with checksums: an incomplete or damaged folder is always recognised.

A folder is written beside its target, flushed to disk, given a list of its files with their hashes, and only then
renamed to its target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runtime.atomic_files import PARTIAL, remove, sha256_of, sync

CHECKSUMS = "checksums.json"


@contextmanager
def checksummed_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill with files; when the block succeeds, add the checksums and rename it to `folder`.

    If the block fails, nothing is left. `folder` must not exist.
    """
    place = folder.parent / f".{folder.name}{PARTIAL}"
    remove(place)
    place.mkdir(parents=True)
    try:
        yield place
        for file in _files(place):
            sync(file)
        checksums = place / CHECKSUMS
        checksums.write_text(json.dumps(_contents(place), indent=1), encoding="utf-8")
        sync(checksums)
        for below in [place, *(path for path in place.rglob("*") if path.is_dir())]:
            sync(below)
        place.rename(folder)
        sync(folder.parent)
    finally:
        remove(place)


def is_intact(folder: Path) -> bool:
    """Return whether a folder has exactly the files that its checksums list, each with the same bytes."""
    try:
        listed = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return bool(listed == _contents(folder))
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS)


def _contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in _files(folder)}
