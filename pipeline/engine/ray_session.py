"""Start Ray on this machine for the time of a run. No other module calls `ray.init`."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.errors import ConfigError, TemporaryError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, about which Ray warns otherwise
}


@contextmanager
def started(workers: int) -> Iterator[None]:
    """Run Ray during the block.

    Args:
        workers: CPUs that Ray may use; 0 for all.

    Raises:
        ConfigError: Ray is not installed.
        TemporaryError: Ray does not start.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    _guard()
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "runtime.engine: ray: Ray is not installed; run `pip install 'image-captioning[ray]'`, or set it to local"
            " (`caption`: --engine local)"
        ) from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        # Without an address in the arguments Ray would take that of the environment.
        ray.init(
            address="local",
            num_cpus=workers or os.cpu_count(),
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (RuntimeError, ConnectionError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TemporaryError(f"Ray: did not start: {reason}; run it again") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would exit with code 15
    try:
        yield
    finally:
        ray.shutdown()


def _guard() -> None:
    """Let only this run use the Ray that it starts, which listens on all interfaces and executes what it gets."""
    if "ray" in sys.modules:  # too late: Ray reads these when it is imported
        return
    if not any(key in os.environ for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
