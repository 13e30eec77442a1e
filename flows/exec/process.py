"""A command in a process group of its own: its output line by line, a limit of time, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TERMINATE_SECONDS = 65  # a training writes a state first
_POLL_SECONDS = 0.1


class TooLongError(Exception):
    """A command took longer than it may; it and all that it started were ended."""


def run(
    command: Sequence[str | Path],
    tell: Callable[[str], None],
    environment: Mapping[str, str],
    seconds: float,
) -> int:
    """Run a command in the current folder; gives its exit code, negative for the signal that killed it.

    Whatever ends this (an interruption, a cancelled flow) ends the command and all that it started.

    Args:
        command: and its arguments.
        tell: is given each line of output as it comes.
        environment: changes to this process's own.
        seconds: that it may take.

    Raises:
        TooLongError: it took longer.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        start_new_session=True,
    )
    too_long = threading.Event()

    def end() -> None:
        too_long.set()
        _end(process)

    # Not Prefect's own limit: that waits until the child says something.
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line := line.rstrip():
                tell(line)
        process.wait()
    except BaseException:  # cancelled as well: nothing may go on behind the flow's back
        _end(process)
        raise
    finally:
        timer.cancel()
        process.stdout.close()  # not before it has ended: what it says while it clears up must not break it off
    if too_long.is_set():
        timer.join()
        raise TooLongError
    return process.returncode


def _end(process: subprocess.Popen[str]) -> None:
    """End the whole process group: first politely, and the rest of it after a while."""
    deadline = time.monotonic() + _TERMINATE_SECONDS
    try:
        os.killpg(process.pid, signal.SIGTERM)
        # DVC may be gone at once, while its stage still clears up; the group is there until its last member ends.
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(_POLL_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
