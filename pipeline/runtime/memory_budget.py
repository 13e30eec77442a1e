"""A limit on the memory that threads use together: each reserves what it is about to use, and waits until it fits.

Ingest and the served models decode pictures under such a budget, because a file of some kilobytes can take a gigabyte
once it is decoded.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_DEFAULT_SHARE = 0.5
_RETURNED_FROM = 16 * 2**20  # bytes; smaller blocks are kept for the next picture
_M_ARENA_MAX = -8  # from malloc.h
_CGROUPS = Path("/sys/fs/cgroup")


class MemoryBudget:
    """A number of bytes to share. Threads are served in the order in which they ask.

    Example::

        budget = MemoryBudget(bytes_of(params.runtime.memory_gb))
        with budget.reserve(opened.memory):
            image = opened.decode()
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes fit, and hold them during the block.

        More than the whole budget is reserved as the whole budget: it waits until all others are done, and then runs
        alone. Do not reserve within a block that holds a reservation of the same budget: the two could wait for each
        other.
        """
        size = min(size, self.total)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._used + size <= self.total)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            self._used += size
        try:
            yield
        finally:
            if size >= _RETURNED_FROM:
                _return_freed_memory()
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def return_large_blocks() -> None:
    """Let budgets return all freed memory to the operating system (glibc only). Call this before threads start.

    Otherwise each thread has an arena of its own, which keeps up to 64 MB of freed blocks.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def bytes_of(gigabytes: float) -> int:
    """Return the bytes of `runtime.memory_gb`; 0 stands for half of the memory of this machine or container."""
    return int(gigabytes * 1e9) if gigabytes else int(machine_memory() * _DEFAULT_SHARE)


def machine_memory(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may use, in bytes: the machine's, or the lowest limit of its cgroups.

    Args:
        cgroups: where the control groups are mounted.
        own: the file that names the groups of this process (see cgroups(7)).
    """
    return min([psutil.virtual_memory().total, *_cgroup_limits(cgroups, own)])


def _cgroup_limits(cgroups: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        # Version 2 has no list of controllers, and version 1 a folder for each.
        if controllers not in ("", "memory"):
            continue
        root = cgroups / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        # In a container the path may be that of the host; the limit is then at the root.
        folder = root / group.lstrip("/")
        for place in [folder, *folder.parents]:
            if place != root and root not in place.parents:
                break
            try:
                limit = (place / name).read_text().strip()
            except OSError:
                continue
            if limit.isdigit():  # not "max"
                yield int(limit)


def _return_freed_memory() -> None:
    """Return freed memory to the operating system; see `return_large_blocks`."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
