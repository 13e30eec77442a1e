"""Prefect's server: use the configured one, or run one on this machine only.

`image-captioning serve` runs this module as its server's process, which ends with it. To start a server by hand, run
`prefect server start`.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime import process_identity
from pipeline.runtime.workspace_lock import OWNER

LOG = paths.WORK / "prefect-server.log"
_HOST = "127.0.0.1"
# The starts of Prefect's messages: unreachable, another version, and the temporary server of a flow run by hand.
_NO_SERVER = (
    "Failed to reach API",
    "Found incompatible versions",
    "Timed out while attempting to connect to ephemeral",
)
_START_SECONDS = 120.0  # enough for the server's first start on a busy machine
_STOP_SECONDS = 5.0
_GRACE_SECONDS = 10.0


class Server:
    """A Prefect server: the configured one, or a local one that workspaces of this machine share.

    Whichever scheduler finds that no local server runs starts it, so it may belong to another workspace's scheduler.
    """

    def __init__(self, address: str, port: int | None) -> None:
        """Create a handle for the API at `address`; `port` is None for a configured server."""
        self.address = address
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_local(self) -> bool:
        """Whether this scheduler may start the server."""
        return self._port is not None

    def answers(self) -> bool:
        """Return whether the server responds."""
        return self._status("/health") == 200

    def is_ready(self) -> bool:
        """Return whether the server responds and reaches its database."""
        status = self._status("/ready")
        return status == 200 or (status == 404 and self.answers())  # not every server has it

    def _status(self, path: str) -> int | None:
        """Return the HTTP status of a request without a body; None if the server does not respond."""
        try:
            request = urllib.request.Request(f"{self.address}{path}")  # noqa: S310
            if password := os.environ.get("PREFECT_API_AUTH_STRING"):  # a proxy may demand it of all requests
                request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, ValueError, http.client.HTTPException):  # the last two: invalid address, no HTTP response
            return None

    def start(self) -> None:
        """Start the server if it is local and does not run, and wait until it responds.

        Raises:
            ConfigError: the server, or a proxy before it, demands another user and password.
            TemporaryError: the server does not respond.
        """
        from prefect.settings import PREFECT_HOME

        home = PREFECT_HOME.value()
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "image-captioning-server.lock"):  # the schedulers of two workspaces start one server
            if self._port is not None and not self.answers():
                with LOG.open("ab" if self._process else "wb") as file:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "flows.exec.server", "--port", str(self._port)],
                        env={**os.environ, OWNER: process_identity.identity()},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if (status := self._status("/health")) in (401, 403):
                raise ConfigError(
                    f"{self.address} answers with HTTP {status}; set PREFECT_API_AUTH_STRING to USER:PASSWORD"
                )
            if self._process is None or time.monotonic() > deadline:
                raise TemporaryError(f"no Prefect server answers at {self.address}; start it, then run this again")
            if self._process.poll() is not None:
                raise TemporaryError(f"Prefect's server does not start; {LOG} says why")
            time.sleep(0.2)

    def has_died(self) -> bool:
        """Return whether the local server has exited, also if another scheduler had started it."""
        if self._process is not None and self._process.poll() is None:
            return False
        if self._port is None:
            return False
        try:
            socket.create_connection((_HOST, self._port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        except OSError:  # a timeout: the server is busy
            return False
        return False

    def stop(self) -> None:
        """Stop the server if this scheduler started it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def connected(port: int, log: Callable[[str], None]) -> Iterator[Server]:
    """Yield the configured server or the local one at `port`, which is started if it does not run.

    Raises:
        TemporaryError: the server does not respond.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    server = Server(configured or f"http://{_HOST}:{port}/api", None if configured else port)
    if server.is_local and not server.answers():
        log("starting Prefect's server ...")
    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.address}):
            yield server
    finally:
        server.stop()


def failure(error: Exception) -> str | None:
    """Return in one line why Prefect's server can't be used, or None if an error has another cause."""
    import httpx

    of_prefect = isinstance(error, RuntimeError) and str(error).startswith(_NO_SERVER)
    if not of_prefect and not isinstance(error, httpx.HTTPError):  # the base of Prefect's PrefectHTTPStatusError
        return None
    return str(error).partition("\n")[0].rstrip("/.") or type(error).__name__


def main() -> None:
    """Run the server in this process. Does not return."""
    parser = argparse.ArgumentParser(prog="python -m flows.exec.server", description=(__doc__ or "").strip())
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    if owner := os.environ.pop(OWNER, None):
        process_identity.end_with([owner], _GRACE_SECONDS)
    # Otherwise Prefect's UI calls the default port, whatever port the server uses.
    os.environ.setdefault("PREFECT_UI_API_URL", f"http://{_HOST}:{args.port}/api")
    sys.argv = ["prefect", "server", "start", "--host", _HOST, "--port", str(args.port)]
    runpy.run_module("prefect", run_name="__main__")


if __name__ == "__main__":
    main()
