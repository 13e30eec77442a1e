"""Start a local server as a child process: find a free port, wait until it answers, and end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NoReturn

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime import process_identity

LOOPBACK = "127.0.0.1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's loopback
_PORTS = 20  # ports to try
_START_SECONDS = 120.0
_END_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_AGAIN_SECONDS, _MAX_WAIT_SECONDS = 2.0, 60.0  # from the start of a server that ends to its next start


def free_port(host: str, first: int, wanted: int | None = None) -> int:
    """Return `wanted` if it is free; without it, the first free port of the 20 from `first`.

    Raises:
        ConfigError: `wanted`, or each of these ports, is taken or not allowed.
    """
    if wanted is not None:
        if not is_free(host, wanted):
            raise ConfigError(f"--port {wanted}: is taken or not allowed; choose another, or omit it")
        return wanted
    for port in range(first, first + _PORTS):
        if is_free(host, port):
            return port
    raise ConfigError(f"ports {first} to {first + _PORTS - 1} are all taken; choose another with --port")


def any_port() -> int:
    """Return a free port of this machine, chosen by the operating system."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Return whether a server may listen on the port, and no other program answers there."""
    if not 1 <= port <= 65_535:
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        # macOS lets a second program bind a port that another, like AirPlay on port 5000, has on all addresses, so
        # binding alone is no proof.
        if probe.connect_ex((LOOPBACK, port)) == 0:
            return False
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


class LocalServer:
    """A server that runs `python -m MODULE ...`, or another program, as a child process.

    Args:
        name: what messages call the server, like "the page".
        words: the module and its arguments; the arguments of `program`.
        log: file for the server's output; it is overwritten.
        environment: environment variables besides those of this process.
        program: what runs `words`, if it is no module of Python.
        stop_signal: the signal that ends the server.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        program: Sequence[str] = (sys.executable, "-m"),
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name, self.log = name, log
        self._command, self._environment = [*program, *words], environment
        self._stop_signal = stop_signal
        self._wait = _AGAIN_SECONDS  # before the next restart
        log.parent.mkdir(parents=True, exist_ok=True)
        self._start("wb")

    def _start(self, mode: Literal["wb", "ab"]) -> None:
        with self.log.open(mode) as file:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, process_identity.STARTER: process_identity.identity(), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._started = time.monotonic()

    def wait_until_it_answers(self, address: str, seconds: float = _START_SECONDS) -> None:
        """Wait until an HTTP GET of `address` returns 200.

        Raises:
            TemporaryError: the server ended, or does not answer within so many seconds.
        """
        self.wait_until(lambda: _answers(address), seconds)

    def wait_until(self, ready: Callable[[], bool], seconds: float = _START_SECONDS) -> None:
        """Wait until the server is ready.

        Raises:
            TemporaryError: the server ended, or is not ready within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None:
                raise TemporaryError(f"{self.name} did not start; see {self.log}, then run it again")
            if time.monotonic() > deadline:
                raise TemporaryError(f"{self.name} did not answer within {seconds:.0f} s; see {self.log}")
            time.sleep(0.2)

    def watch(self, *kept: LocalServer) -> NoReturn:
        """Wait until the server ends by itself, and raise an error then.

        Args:
            kept: servers that are restarted if they end by themselves.

        Raises:
            TemporaryError: the server ended.
        """
        while (code := self._code(_LOOK_SECONDS)) is None:
            for server in kept:
                server.restart_if_ended()
        raise TemporaryError(f"{self.name} ended with exit code {code}; see {self.log}, then run it again")

    def has_ended(self) -> bool:
        """Return whether the server has ended by itself."""
        return self._process.poll() is not None

    def restart_if_ended(self) -> None:
        """Start the server again if it has ended, with exponential backoff if it keeps ending."""
        code, ran = self._process.poll(), time.monotonic() - self._started
        if code is None:
            self._wait = _AGAIN_SECONDS if ran > _MAX_WAIT_SECONDS else self._wait
        elif ran > self._wait:
            print(f"{self.name} ended with exit code {code}; restarting it (see {self.log})", flush=True)
            self._wait = min(2 * self._wait, _MAX_WAIT_SECONDS)
            self._start("ab")

    def _code(self, seconds: float) -> int | None:
        """Wait for the server to end, and return its exit code; None if it still runs after some seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask the server to end if it runs."""
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)

    def end(self) -> None:
        """Ask the server to end if it runs, and kill it if it has not ended after 10 seconds."""
        self.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(address: str) -> bool:
    try:
        with _DIRECT.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False
