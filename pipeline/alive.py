"""Processes by their id and start time: whether they still live, and how one ends itself when another is gone.

A process id alone is used again sooner or later; with the start time it is not. `PID:SECONDS` is written where
another process, or another day's, will read it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_WATCH_SECONDS = 0.5
_CLOCK_SECONDS = 5.0  # start times are told by a clock that may be set meanwhile


def identity(process: psutil.Process | None = None) -> str:
    """A process, this one if none is given, as `PID:SECONDS`.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    process = process or psutil.Process()
    return f"{process.pid}:{process.create_time():.2f}"


def pid_of(process: str) -> int:
    """The process id within `PID:SECONDS`."""
    return int(process.partition(":")[0])


def is_alive(process: str) -> bool:
    """Whether the process `PID:SECONDS` of this machine still runs."""
    pid, _, started = process.partition(":")
    try:
        found = psutil.Process(int(pid))
        same = abs(found.create_time() - float(started)) < _CLOCK_SECONDS
        return same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True  # another user's


def starters() -> list[str]:
    """The parent of this process; where that is a shell that runs one command (`sh -c`), its parent too, and so on.

    DVC starts a stage through a shell. Where that shell stays between the two it outlives a killed DVC. The last one
    is who really started this process.

    Raises:
        psutil.NoSuchProcess: one is gone already.
    """
    found = []
    parent = psutil.Process().parent()
    try:
        while parent is not None:
            found.append(identity(parent))
            parent = parent.parent() if _is_shell_of_one_command(parent.cmdline()) else None
    except psutil.AccessDenied:
        pass  # another user's process: what could be read is known
    return found


def _is_shell_of_one_command(command: list[str]) -> bool:
    return "-c" in command[1:-1] and "python" not in Path(command[0]).name


def end_with(others: Sequence[str], grace_seconds: float, childless_seconds: float | None = None) -> None:
    """Start a thread that sends this process SIGTERM once one of `others` is gone, and after a while ends it.

    Args:
        others: as `identity` names them.
        grace_seconds: that it has to end by itself.
        childless_seconds: fewer, from when it has no children any more, for one that does nothing without them.
    """

    def watch() -> None:
        while all(is_alive(process) for process in others):
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline:
            if childless_seconds is not None and not psutil.Process().children():
                time.sleep(childless_seconds)
                break
            time.sleep(_WATCH_SECONDS)
        os._exit(75)

    threading.Thread(target=watch, name="end-with-others", daemon=True).start()
