"""A file of JSON Lines to which several processes append, so that no line is lost or torn.

A line is saved when it is on the disk: file and folder are fsynced before `append` returns. Writers take turns by a
file lock. What a killed writer left behind the last complete line is never read, and the next writer cuts it off.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from pipeline.config.errors import TemporaryError
from pipeline.data.sources.corrections import complete_lines
from pipeline.runtime.atomic_files import PARTIAL, sync


class Journal:
    """A file of lines. Threads and processes may share it; call everything but `locked` within `locked`.

    Attributes:
        file: need not exist.
    """

    def __init__(self, file: Path, lock: Path) -> None:
        """Open the file.

        Args:
            file: see the module.
            lock: outside the file's folder, because DVC tracks everything in that.
        """
        self.file = file
        self._lock = lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out, and report a full disk in one line.

        Raises:
            TemporaryError: the disk is full; nothing was saved.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock), _disk_full_reported():
            yield

    def lines(self, *words: str) -> list[bytes]:
        """Return all complete lines, or those that have one of the words: parsing takes most of the time."""
        found = complete_lines(self._bytes()).split(b"\n")[:-1]
        if not words:
            return found
        encoded = [word.encode("utf-8", "replace") for word in words]
        return [line for line in found if any(word in line for word in encoded)]

    def append(self, line: str) -> None:
        """Append a line and fsync it; after a failure the file is as before."""
        data = line.encode("utf-8", "replace") + b"\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._unlink_from_cache()
        with self.file.open("ab+", buffering=0) as file:
            end = len(complete_lines(self._bytes()))
            file.truncate(end)  # what a killed writer left
            try:
                _write(file, data)
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
        sync(self.file.parent)

    def rewrite(self, lines: list[bytes]) -> None:
        """Replace the content."""
        replace(self.file, b"".join(line + b"\n" for line in lines))

    def _bytes(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""

    def _unlink_from_cache(self) -> None:
        """Replace a link to DVC's cache (see `cache.type`) by a copy, so that appending does not damage the cache."""
        if self.file.exists() and (self.file.is_symlink() or self.file.stat().st_nlink > 1):
            replace(self.file, self.file.read_bytes())


def replace(path: Path, data: bytes) -> None:
    """Write a file beside its place, fsync it, and rename it; fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.parent / f".{path.name}{PARTIAL}"
    try:
        with place.open("wb", buffering=0) as file:
            _write(file, data)
            os.fsync(file.fileno())
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)
    sync(path.parent)
    sync(path.parent.parent)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _disk_full_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TemporaryError("the disk is full; nothing was saved: free some space, then save again") from None
        raise
