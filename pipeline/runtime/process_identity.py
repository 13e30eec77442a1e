"""Processes by their id and start time: whether they still live, and how one ends itself when another is gone.

A process id alone is used again sooner or later; with the start time it is not. `PID:START` is written where another
process, or another day's, will read it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_WATCH_SECONDS = 0.5
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity(process: psutil.Process | None = None) -> str:
    """A process, this one if none is given, as `PID:START`.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    process = process or psutil.Process()
    return f"{process.pid}:{_start(process.pid)}"


def _start(pid: int) -> str:
    """When a process began.

    On Linux by the clock that counts from the start of the machine, and which start that was: the time of day may be
    set meanwhile, and psutil's start times with it.
    """
    if not sys.platform.startswith("linux"):
        return f"{psutil.Process(pid).create_time():.2f}"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # of names that hold anything
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{fields[19]}-{_BOOT.read_text().strip()}"


def pid_of(process: str) -> int:
    """The process id within `PID:START`."""
    return int(process.partition(":")[0])


def is_alive(process: str) -> bool:
    """Whether the process `PID:START` of this machine still runs."""
    pid, _, started = process.partition(":")
    try:
        return _start(int(pid)) == started and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True  # another user's


def began_before(pid: int, moment: float) -> bool:
    """Whether the process of that id runs, and began before a moment (seconds since 1970); else the id is another's."""
    try:
        return psutil.Process(pid).create_time() <= moment
    except psutil.NoSuchProcess:
        return False


def has_children(pid: int) -> bool:
    """Whether a process has started others that still run."""
    try:
        return bool(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


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
