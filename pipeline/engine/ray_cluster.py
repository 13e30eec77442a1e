"""Connect to a Ray cluster, or start one on this machine for the time of a run. No other module calls `ray.init`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pipeline
from pipeline.config.errors import ConfigError, TemporaryError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, about which Ray warns otherwise
}
_CONNECT_SECONDS = 5.0


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster during the block.

    Args:
        address: `HOST:PORT` of a cluster that this machine belongs to; None starts one on this machine alone, which
            ends with the block.
        workers: CPUs that a cluster on this machine has; 0 for all.

    Raises:
        ConfigError: Ray is not installed, this machine does not belong to the cluster, or the versions differ.
        TemporaryError: nothing answers at the address, or Ray does not start.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    if address is None:
        _guard()
    else:
        _check_answer(address)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "params.yaml: runtime.engine: ray: Ray is not installed; run `pip install 'image-captioning[ray]'`, or set"
            " it to local"
        ) from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**_settings(address, workers), logging_level="ERROR", log_to_driver=False)
    except (RuntimeError, ConnectionError, ValueError, TimeoutError) as error:
        raise _explained(error, address) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would exit with code 15
    try:
        yield
    finally:
        ray.shutdown()


def _settings(address: str | None, workers: int) -> dict[str, Any]:
    if address is None:
        # Without an address in the arguments Ray would take that of the environment.
        return {"address": "local", "num_cpus": workers or os.cpu_count(), "include_dashboard": False}
    # Each node runs this machine's code, whatever is installed there.
    code = {"py_modules": [str(Path(pipeline.__file__).parent)], "excludes": ["__pycache__"]}
    return {"address": address, "runtime_env": code}


def _guard() -> None:
    """Let only this run use the cluster that it starts: Ray listens on all interfaces and executes what it gets."""
    if "ray" in sys.modules:  # too late: Ray reads these when it is imported
        return
    if not any(key in os.environ for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _check_answer(address: str) -> None:
    """Raise at once if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise TemporaryError(
            f"params.yaml: runtime.ray_address: {address}: no Ray cluster answers ({error.strerror or error}); start"
            " one (`ray start --head`), or correct the address"
        ) from None


def _explained(error: Exception, address: str | None) -> ConfigError | TemporaryError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300]
    place = f"Ray cluster {address}" if address else "Ray"
    if "ersion" in text and "match" in text:  # "Version mismatch"; "Python version mismatch"
        return ConfigError(f"{place}: {text}; install the same Python and the same Ray on every machine")
    if address and ("node" in text.lower() or "raylet" in text.lower()):
        return ConfigError(
            f"{place}: this machine does not belong to it ({text}); run `ray start --address={address}` here first"
        )
    return TemporaryError(f"{place}: did not start or answer: {text}; run it again")
