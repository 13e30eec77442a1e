"""Identify processes by id and start time, check whether they still run, and end a process when another is gone.

The operating system reuses process ids, so an id alone is ambiguous; an id with a start time is unique. `PID:START` is
stored where another process, possibly days later, reads it.
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

# Environment: the process that starts this one. A process whose parent is killed before it can ask gets another parent.
STARTER = "IMAGE_CAPTIONING_STARTER"
_WATCH_SECONDS = 0.5
_SHELLS = {"bash", "dash", "fish", "ksh", "sh", "zsh"}
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def identity(process: psutil.Process | None = None) -> str:
    """Return `PID:START` for a process (default: this one).

    Raises:
        psutil.NoSuchProcess: the process is gone.
    """
    process = process or psutil.Process()
    return f"{process.pid}:{_start(process.pid)}"


def _start(pid: int) -> str:
    """Return when a process started.

    On Linux this is the time since boot plus the boot id: the wall clock may be adjusted in the meantime, which would
    shift psutil's start times.
    """
    if not sys.platform.startswith("linux"):
        return f"{psutil.Process(pid).create_time():.2f}"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # names may contain anything
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{fields[19]}-{_BOOT.read_text().strip()}"


def pid_of(process: str) -> int:
    """Return the process id in `PID:START`."""
    return int(process.partition(":")[0])


def is_alive(process: str) -> bool:
    """Return whether the process `PID:START` still runs on this machine."""
    pid, _, started = process.partition(":")
    try:
        return _start(int(pid)) == started and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True  # the process belongs to another user


def began_before(pid: int, moment: float) -> bool:
    """Return whether a process with this id runs and started at or before `moment` (seconds since 1970).

    A process that started later has reused the id.
    """
    try:
        return psutil.Process(pid).create_time() <= moment
    except psutil.NoSuchProcess:
        return False


def has_children(pid: int) -> bool:
    """Return whether a process has child processes that still run."""
    try:
        return bool(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return False


def starters() -> list[str]:
    """Return the parent of this process; if it is a one-command shell (`sh -c`), also its parent, and so on.

    The process that `STARTER` names comes first.
    DVC starts a stage through a shell. If that shell stays between the two, it outlives a killed DVC. The last entry
    is the process that really started this one. After `nohup` that is not the shell in which a person typed it: the
    list leaves it out, so that the process may outlive its terminal.

    Raises:
        psutil.NoSuchProcess: one of these processes is already gone.
    """
    found = [given] if (given := os.environ.pop(STARTER, "")) else []  # what this one starts has another
    parent = psutil.Process().parent()
    try:
        while parent is not None and not _is_shell_after_nohup(parent):
            found.append(identity(parent))
            parent = parent.parent() if _is_shell_of_one_command(parent.cmdline()) else None
    except psutil.AccessDenied:
        pass  # the process belongs to another user; return what was found so far
    return found


def _is_shell_of_one_command(command: list[str]) -> bool:
    return "-c" in command[1:-1] and "python" not in Path(command[0]).name


def _is_shell_after_nohup(process: psutil.Process) -> bool:
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        return False
    return process.name() in _SHELLS and not _is_shell_of_one_command(process.cmdline())


def end_with(others: Sequence[str], grace_seconds: float, childless_seconds: float | None = None) -> None:
    """Start a thread that sends this process SIGTERM once one of `others` is gone and kills it after a grace period.

    Args:
        others: processes in the format of `identity`.
        grace_seconds: how long this process may take to end by itself.
        childless_seconds: shorter grace period that starts when this process has no children left; for a process that
            does nothing without them.
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
