"""One training by several processes of this machine: how they are started and ended.

Each gets what `accelerate launch` would give it, so a training may as well be started by that, on several machines.
Here the processes' exit codes and signals stay those of a stage.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # to write a state


def is_one_of_several() -> bool:
    """Whether this process was started as one of those of a training."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return os.environ.get("RANK", "0") == "0"


def run_several(module: str, count: int, gpu: bool) -> int:
    """Run `python -m MODULE` in `count` processes; gives the exit code, of several the first that is not 0.

    Where one fails the others are ended. They talk to each other over the loopback interface.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        **({} if gpu else {"ACCELERATE_USE_CPU": "true"}),
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module], env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]
    try:
        while any(code is None for code in (process.poll() for process in processes)):
            failed = [process.returncode for process in processes if process.returncode]
            if failed:
                return int(failed[0])
            time.sleep(_POLL_SECONDS)
        return next((process.returncode for process in processes if process.returncode), 0)
    finally:
        _end(processes)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask those that still run to end, and end them after a while."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
