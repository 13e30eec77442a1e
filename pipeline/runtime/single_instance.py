"""One process at a time: what must not run twice in a workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config.errors import TemporaryError


@contextmanager
def single_instance(lock: Path, problem: str) -> Iterator[None]:
    """Hold a lock file until the block ends.

    Args:
        lock: the file; its folder is created.
        problem: the error's message if another process holds the lock.

    Raises:
        TemporaryError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise TemporaryError(problem) from None
    try:
        yield
    finally:
        held.release()
