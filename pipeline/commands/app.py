"""Open the web page: start the captioning service and the page, and end both when one ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.serving.limits import is_loopback, token_for

_FIRST_PORT, _PORTS = 8501, 20
_PAGE_LOG, _SERVICE_LOG = paths.WORK / "app.log", paths.WORK / "app-service.log"
_START_SECONDS = 120.0
_END_SECONDS = 10.0
_LOOPBACK = "127.0.0.1"
# Environment of the page; the names stand in app/session.py too, because `pipeline` does not import `app`.
_SERVICE, _ASK_TOKEN = "IMAGE_CAPTIONING_SERVICE", "IMAGE_CAPTIONING_ASK_TOKEN"


def open_app(host: str, port: int | None, service: str | None) -> str:
    """Serve the page until Ctrl-C or SIGTERM, and return the last line to print.

    Args:
        host: name or address to listen on; beyond loopback a token must be set, which the page asks for.
        port: None for the first free port from 8501.
        service: address of a running captioning service; None to start one on a free port of this machine.

    Raises:
        ConfigError: the port is taken, Streamlit is missing, or other machines could open the page without a token.
        TemporaryError: the page does not start, or it ended by itself.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # from here on there are servers to end
    token_for(host)
    _check_streamlit()
    port = _free_port(host, port)
    environment = dict(os.environ)
    if not is_loopback(host):
        environment[_ASK_TOKEN] = "1"
    children: list[subprocess.Popen[bytes]] = []
    try:
        if service is None:
            inner = _any_port()
            service = f"http://{_LOOPBACK}:{inner}"
            children.append(_start(["pipeline.cli", "serve-model", "--port", f"{inner}"], _SERVICE_LOG, environment))
        environment[_SERVICE] = service
        page = _start(["app", host, f"{port}"], _PAGE_LOG, environment)
        children.append(page)
        _wait_until_it_answers(page, _LOOPBACK if host == "0.0.0.0" else host, port)  # noqa: S104
        print(f"app: http://{host}:{port}  (captions by {service}; Ctrl-C ends it)", flush=True)
        page.wait()
        raise TemporaryError(f"the page ended with exit code {page.returncode}; see {_PAGE_LOG}, then run it again")
    except KeyboardInterrupt:
        return "ended"
    finally:
        _end(children)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_streamlit() -> None:
    from importlib.util import find_spec

    if find_spec("streamlit") is None or find_spec("app") is None:
        raise ConfigError(
            "the page needs Streamlit: run `pip install 'streamlit==1.67.*'` in the root of the repository"
        )


def _free_port(host: str, wanted: int | None) -> int:
    ports: Sequence[int] = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if wanted is None else [wanted]
    for port in ports:
        if _is_free(host, port):
            return port
    raise ConfigError(f"--port {ports[0]}: is taken or not allowed; choose another")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((_LOOPBACK, port)) == 0:  # on macOS another program may listen beside it
            return False
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return False
    return True


def _any_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def _start(module: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _wait_until_it_answers(page: subprocess.Popen[bytes], host: str, port: int) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/_stcore/health"
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):  # http, and our own address
                return
        except OSError:
            pass
        if page.poll() is not None:
            raise TemporaryError(f"the page did not start; see {_PAGE_LOG}, then run it again")
        if time.monotonic() > deadline:
            raise TemporaryError(f"the page did not answer within {_START_SECONDS:.0f} s; see {_PAGE_LOG}")
        time.sleep(0.2)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
