"""Run a command in its own process group: stream its output by line, enforce a timeout, leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TERMINATE_SECONDS = 65  # a training saves its state first
_POLL_SECONDS = 0.1


class TooLongError(Exception):
    """A command exceeded its timeout; its whole process group was terminated."""


def run(
    command: Sequence[str | Path],
    log: Callable[[str], None],
    environment: Mapping[str, str],
    seconds: float,
) -> int:
    """Run a command in the current folder. Return its exit code, or the negative number of the signal that killed it.

    If this call is interrupted (Ctrl-C, a cancelled flow), the command and all processes it started are terminated.

    Args:
        command: the command and its arguments.
        log: receives each line of output as it is written.
        environment: variables to add to this process's environment.
        seconds: the timeout.

    Raises:
        TooLongError: the command exceeded the timeout.
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

    # Not Prefect's timeout: it takes effect only once the child writes a line.
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line := line.rstrip():
                log(line)
        process.wait()
    except BaseException:  # includes cancellation: no process may outlive the flow
        _end(process)
        raise
    finally:
        timer.cancel()
        process.stdout.close()  # only after it ended: a closed pipe would interrupt its cleanup
    if too_long.is_set():
        timer.join()
        raise TooLongError
    return process.returncode


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate the whole process group: send SIGTERM, then SIGKILL to what is left after a grace period."""
    deadline = time.monotonic() + _TERMINATE_SECONDS
    try:
        os.killpg(process.pid, signal.SIGTERM)
        # DVC may exit at once while its stage still cleans up; the group exists until its last process ends.
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(_POLL_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
