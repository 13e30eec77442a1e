"""Open the web page: start the captioning service and the page, restart the service if it dies, and end both."""

from __future__ import annotations

import signal
from types import FrameType

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.runtime.local_server import LOOPBACK, LocalServer, any_port, free_port
from pipeline.serving.limits import is_loopback, token_for

_FIRST_PORT = 8501
_PAGE_LOG, _SERVICE_LOG = paths.WORK / "app.log", paths.WORK / "app-service.log"
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
    port = free_port(host, _FIRST_PORT, port)
    environment = {} if is_loopback(host) else {_ASK_TOKEN: "1"}
    servers: list[LocalServer] = []
    try:
        if service is None:
            inner = any_port()
            service = f"http://{LOOPBACK}:{inner}"
            words = ["pipeline.cli", "serve-model", "--port", f"{inner}"]
            servers.append(LocalServer("the captioning service", words, _SERVICE_LOG, environment))
        page = LocalServer("the page", ["app", host, f"{port}"], _PAGE_LOG, {**environment, _SERVICE: service})
        servers.append(page)
        page.wait_until_it_answers(f"http://{_reachable(host)}:{port}/_stcore/health")
        print(f"app: http://{host}:{port}  (captions by {service}; Ctrl-C ends it)", flush=True)
        page.watch(*servers[:-1])  # the captioning service may run out of memory; people go on without it meanwhile
    except KeyboardInterrupt:
        return "ended"
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.end()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _check_streamlit() -> None:
    from importlib.util import find_spec

    if find_spec("streamlit") is None or find_spec("app") is None:
        raise ConfigError(
            "the page needs Streamlit: run `pip install 'streamlit==1.67.*'` in the root of the repository"
        )


def _reachable(host: str) -> str:
    """Return the name under which this machine reaches a server that listens on `host`."""
    if host == "0.0.0.0":  # noqa: S104
        return LOOPBACK
    return f"[{host}]" if ":" in host else host
