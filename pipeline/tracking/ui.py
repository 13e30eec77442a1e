"""MLflow's pages of the runs and registered models, on this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.params import Params

_HOST = "127.0.0.1"
_FIRST_PORT = 5000  # on macOS, AirPlay often has it
_PORTS = 20  # ports to try
_LOG = paths.WORK / "mlflow-ui.log"
_START_SECONDS = 120.0
_END_SECONDS = 10.0


def browse(params: Params, port: int | None = None) -> str:
    """Serve MLflow's pages until Ctrl-C, and return the last line to print.

    Args:
        params: all of params.yaml.
        port: None for the first free port from 5000.

    Raises:
        ConfigError: the port is taken, or MLflow is a server of its own.
        TemporaryError: the server does not start, or it ended by itself.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        from pipeline.tracking import runs

        address = runs.shown(uri)
        raise ConfigError(f"MLFLOW_TRACKING_URI: {address} has pages of its own; open that address in a browser")
    port = _free_port(port)
    experiment_id = _experiment(params.register_.experiment)
    # Without the workflow in the address, MLflow opens its pages for language models.
    page = f"http://{_HOST}:{port}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    print("ui: starting MLflow ...", flush=True)
    server = _start(uri or f"sqlite:///{Path('mlflow.db').absolute()}", port)
    try:
        _wait_until_it_answers(server, port)
        print(f"ui: {page}  (Ctrl-C ends it)", flush=True)
        server.wait()
        raise TemporaryError(f"MLflow's server ended with exit code {server.returncode}; see {_LOG}, then run it again")
    except KeyboardInterrupt:
        return "ended"
    finally:
        _end(server)


def _experiment(name: str) -> str:
    """Return the id of the experiment. Creates the database: several processes at once would corrupt a new one."""
    from pipeline.tracking import runs

    with runs.reachable():
        return runs.experiment(runs.client(), name)


def _free_port(wanted: int | None) -> int:
    if wanted is not None:
        if not _is_free(wanted):
            raise ConfigError(f"--port {wanted}: is taken or not allowed; choose another, or omit it")
        return wanted
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        if _is_free(port):
            return port
    raise ConfigError(f"ports {_FIRST_PORT} to {_FIRST_PORT + _PORTS - 1} are all taken; choose another with --port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        # macOS lets a second program bind a port that another has on all addresses, so binding alone is no proof.
        if probe.connect_ex((_HOST, port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _start(store: str, port: int) -> subprocess.Popen[bytes]:
    command = ["mlflow", "server", "--backend-store-uri", store, "--host", _HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # MLflow's jobs are not used here; without them and with one worker it takes 0.4 GB instead of 2.4.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    _LOG.parent.mkdir(parents=True, exist_ok=True)
    with _LOG.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(port):
        if server.poll() is not None:
            raise TemporaryError(f"MLflow's server did not start; see {_LOG}, then run it again")
        if time.monotonic() > deadline:
            raise TemporaryError(f"MLflow's server did not answer within {_START_SECONDS:.0f} s; see {_LOG}")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
