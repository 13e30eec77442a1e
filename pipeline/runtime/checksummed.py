"""Folders that are whole, and can be told from those that are not.

A folder is written beside its place, flushed to the disk, sealed by a list of its files with their hashes, and
only then renamed into place. Whatever is cut off, lost or changed later, the seal tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runtime.atomic_files import PARTIAL, remove, sha256_of

SEAL = "seal.json"


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """Give a place to fill with files; once the block has ended well it is sealed, and stands at `folder`.

    A block that fails leaves nothing. `folder` must not be there yet.
    """
    place = folder.parent / f".{folder.name}{PARTIAL}"
    remove(place)
    place.mkdir(parents=True)
    try:
        yield place
        for file in _files(place):
            _flush(file)
        seal = place / SEAL
        seal.write_text(json.dumps(_contents(place), indent=1), encoding="utf-8")
        _flush(seal)
        for below in [place, *(path for path in place.rglob("*") if path.is_dir())]:
            _flush(below)
        place.rename(folder)
        _flush(folder.parent)
    finally:
        remove(place)


def is_whole(folder: Path) -> bool:
    """Whether a folder has its seal, and the files that the seal lists, each byte as it was, and no others."""
    try:
        listed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(listed == _contents(folder))
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)


def _contents(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in _files(folder)}


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
