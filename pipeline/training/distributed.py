"""One training by several processes, of one machine or more: how they are started and ended.

Each gets in its environment what `torchrun` would give it, so a training may as well be started by that. Here the
processes' exit codes and signals stay those of a stage.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from pipeline.config.errors import ConfigError
from pipeline.config.sections.runtime import Launch

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # to write a state


def is_one_of_several() -> bool:
    """Whether this process was started as one of those of a training."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return os.environ.get("RANK", "0") == "0"


def run_several(module: str, launch: Launch, machine: int, gpu: bool) -> int:
    """Run this machine's processes of `python -m MODULE`; gives the exit code, of several the first that is not 0.

    Where one fails the others are ended. On one machine they talk to each other over the loopback interface.

    Args:
        module: what each process runs.
        launch: how many there are, and where the first one is.
        machine: the number of this machine, from 0.
        gpu: whether each has a GPU.

    Raises:
        ConfigError: there is no machine of that number.
    """
    if machine >= launch.machines:
        raise ConfigError(
            f"--machine {machine}: params.yaml has runtime.launch.machines: {launch.machines}, and machines are"
            " numbered from 0; correct one of them"
        )
    if launch.machines > 1 and machine == 0:
        print(f"{module}: waits for `python -m {module} --machine N` on the other machines, in this folder", flush=True)
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    common = {
        "MASTER_ADDR": launch.address if launch.machines > 1 else _LOOPBACK,
        "MASTER_PORT": str(launch.port if launch.machines > 1 else _free_port()),
        "WORLD_SIZE": str(launch.together),
        "LOCAL_WORLD_SIZE": str(launch.processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        **({} if gpu else {"ACCELERATE_USE_CPU": "true"}),
    }
    if sys.platform == "linux" and common["MASTER_ADDR"] == _LOOPBACK:
        common["GLOO_SOCKET_IFNAME"] = "lo"
    processes = []
    for local in range(launch.processes):
        own = {"RANK": str(machine * launch.processes + local), "LOCAL_RANK": str(local)}
        processes.append(subprocess.Popen([sys.executable, "-m", module], env={**os.environ, **common, **own}))
    try:
        while any(code is None for code in (process.poll() for process in processes)):
            failed = [process.returncode for process in processes if process.returncode]
            if failed:
                return int(failed[0])
            time.sleep(_POLL_SECONDS)
        return next((process.returncode for process in processes if process.returncode), 0)
    finally:
        _end(processes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


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
