"""Start Ray on this machine for a run, or connect to a running cluster. No other module calls `ray.init`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pipeline.config.errors import ConfigError, PipelineError, TemporaryError

_ANSWER_SECONDS = 10.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, about which Ray warns otherwise
}


@contextmanager
def started(workers: int, address: str | None) -> Iterator[None]:
    """Have Ray during the block.

    Args:
        workers: CPUs that a Ray of this machine may use; 0 for all.
        address: of a running cluster, `HOST:PORT` or `auto`; None starts Ray on this machine.

    Raises:
        ConfigError: Ray is not installed, or the cluster has another version of Ray or Python, or asks for a token.
        TemporaryError: Ray does not start, or the cluster does not answer.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    if address is None:
        _guard()
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "runtime.engine: ray: Ray is not installed; run `pip install 'image-captioning[ray]'`, or set it to local"
            " (`caption`: --engine local)"
        ) from None
    before = signal.getsignal(signal.SIGTERM)
    cpus = {"num_cpus": workers or os.cpu_count()} if address is None else {}
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as said, _stderr_in(said if address else None):
            try:
                if address not in (None, "auto"):
                    check_that_somebody_listens(address)  # Ray itself would try for more than five minutes
                # Without an address in the arguments Ray would take that of the environment.
                ray.init(
                    address=address or "local",
                    include_dashboard=False,
                    logging_level="ERROR",
                    log_to_driver=False,
                    **cpus,
                )
            except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
                said.seek(0)
                raise _refusal(address, " ".join(str(error).split()), said.read()) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would exit with code 15
    try:
        yield
    finally:
        ray.shutdown()


def check_that_somebody_listens(address: str) -> None:
    """Raise OSError unless a program listens at `HOST:PORT`."""
    host, port = address.rsplit(":", 1)
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


@contextmanager
def _stderr_in(file: IO[str] | None) -> Iterator[None]:
    """Have a file get what this process writes to stderr during the block; not with None.

    Ray's C++ part says there, again and again, why a cluster refuses us, and its exception does not.
    """
    if file is None:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _refusal(address: str | None, reason: str, said: str) -> PipelineError:
    """Return the error for what `ray.init` raised, and wrote to stderr."""
    if address is None:
        return TemporaryError(f"Ray: did not start: {reason[:300]}; run it again")
    key = f"params.yaml: runtime.ray_address: {address}"
    if "ersion mismatch" in reason:
        return ConfigError(f"{key}: {reason[:400]}; install the same versions on all machines")
    if "Unauthenticated" in said:
        return ConfigError(
            f"{key}: the cluster asks for another token; set RAY_AUTH_MODE to token, and RAY_AUTH_TOKEN to its token"
        )
    return TemporaryError(
        f"{key}: found no cluster with this machine in it ({reason[:200]}); start it (`ray start --head`), or let this"
        " machine join it (`ray start --address HOST:PORT`)"
    )


def _guard() -> None:
    """Let only this run use the Ray that it starts, which listens on all interfaces and executes what it gets."""
    if "ray" in sys.modules:  # too late: Ray reads these when it is imported
        return
    if not any(key in os.environ for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
