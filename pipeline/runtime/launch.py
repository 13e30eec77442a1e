"""Launch a training in several processes, on one machine or more.

Each process gets the environment variables that `torchrun` sets, so `torchrun` may start a training as well. This
launcher keeps the exit codes and signals of a stage, and restarts what died, but not what bad data or a setting ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from pipeline.config.errors import ConfigError, DataError
from pipeline.config.sections.runtime import Launch

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # to write a state
_RESTART_SECONDS = 2.0  # until the port is free again
_FINAL = (DataError.exit_code, ConfigError.exit_code)  # a restart would end with them again


def is_one_of_several() -> bool:
    """Return whether a launcher started this process."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def run_several(module: str, launch: Launch, machine: int) -> int:
    """Run this machine's processes of `python -m MODULE`, and return the first exit code that is not 0, else 0.

    If one fails, the others are terminated, and all are started again, unless the data or a setting is to blame. The
    processes of other machines fail then too, because they lose their connections, and their launchers do the same. On
    one machine processes communicate over the loopback interface.

    Args:
        module: the module that each process runs.
        launch: number of processes and machines, the first machine's address, and the number of restarts.
        machine: this machine's rank, 0-based.

    Raises:
        ConfigError: the rank exceeds the number of machines.
    """
    if machine >= launch.machines:
        raise ConfigError(
            f"--machine {machine}: params.yaml has runtime.launch.machines: {launch.machines}, and machines are"
            " numbered from 0; correct one of the two"
        )
    if launch.machines > 1 and machine == 0:
        print(f"{module}: waits for `python -m {module} --machine N` on the other machines, in this folder", flush=True)
    for restart in range(1, launch.restarts + 2):
        code = _run_once(module, launch, machine)
        if code in (0, *_FINAL) or restart > launch.restarts:
            return code
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(
            f"{module}: a process {how}; all start again and resume from the last state (restart {restart} of"
            f" {launch.restarts})",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(_RESTART_SECONDS)
    raise AssertionError("the last attempt returns")


def _run_once(module: str, launch: Launch, machine: int) -> int:
    """Start the processes; return 0 once all have ended well, else the first other exit code, after ending the rest."""
    threads = max(1, (os.cpu_count() or 1) // launch.processes)
    common = {
        "MASTER_ADDR": launch.address if launch.machines > 1 else _LOOPBACK,
        "MASTER_PORT": str(launch.port if launch.machines > 1 else _free_port()),
        "WORLD_SIZE": str(launch.together),
        "LOCAL_WORLD_SIZE": str(launch.processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    if sys.platform == "linux" and common["MASTER_ADDR"] == _LOOPBACK:
        common["GLOO_SOCKET_IFNAME"] = "lo"
    processes = []
    try:
        for local in range(launch.processes):
            own = {"RANK": str(machine * launch.processes + local), "LOCAL_RANK": str(local)}
            processes.append(subprocess.Popen([sys.executable, "-m", module], env={**os.environ, **common, **own}))
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
    """Terminate the processes that still run, and kill them after a grace period."""
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
