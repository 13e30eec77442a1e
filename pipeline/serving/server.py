"""Run the captioning service: check the address, listen, and end in order on SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType

import uvicorn

from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.serving.following import ChallengerSource, Follower, ModelSource, ModelToServe
from pipeline.serving.limits import token_for
from pipeline.serving.metrics import Metrics
from pipeline.serving.service import Service, create_app

_BACKLOG = 2048
# Longer than clients and proxies keep an idle connection (nginx: 60 s). Otherwise the service may close it at the
# moment at which they send the next request, and that request fails.
_KEEP_ALIVE_SECONDS = 75
_EXTRA_SECONDS = 5  # to send the last answers after the time limit of the last request


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 on SIGTERM. (uvicorn would raise the signal again at the end.)"""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def end(signum: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit and signum == signal.SIGINT  # a second Ctrl-C
            self.should_exit = True

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(params: Params, *, host: str, port: int, model: str | None, alias: str) -> str:
    """Serve captions until SIGTERM or Ctrl-C, and return the last line to print.

    Requests that were accepted are answered first; new ones are refused.

    Args:
        params: all of params.yaml.
        host: name or address to listen on.
        port: 0 for any free port.
        model: name of the registered model; None for `register.model`.
        alias: the alias to follow.

    Raises:
        ConfigError: the host is not loopback and no token is set, or the address can't be used.
    """
    token = token_for(host)
    metrics = Metrics()

    def say(line: str) -> None:
        print(f"serve-model: {line}", flush=True)

    def loaded(found: ModelToServe) -> None:
        metrics.model_loaded(found.name, "" if found.version is None else str(found.version))

    source = ModelSource(model or params.register_.model, alias, params)
    follower = Follower(source, params.serving.follow_seconds, say=say, loaded=loaded)
    candidates = ChallengerSource(model or params.register_.model, alias, params)
    challenger = Follower(candidates, params.serving.follow_seconds, say=say, loaded=lambda found: None, keeps=False)
    return_large_blocks()
    budget = MemoryBudget(bytes_of(params.runtime.memory_gb))
    service = Service(
        follower,
        params.serving,
        params.evaluate.beams,
        metrics,
        budget,
        params.runtime.decode_threads,
        challenger,
    )
    config = uvicorn.Config(
        create_app(service, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(params.serving.timeout_seconds) + _EXTRA_SECONDS,
    )
    with _listening(host, port) as listener:
        address = f"[{host}]" if ":" in host else host
        say(f"http://{address}:{listener.getsockname()[1]}/docs  (Ctrl-C ends it)")
        _Server(config).run(sockets=[listener])
    return f"ended; {metrics.answered()} requests answered"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        problem = f"--host {host} --port {port}: can't listen there ({error.strerror})"
        raise ConfigError(f"{problem}; choose another") from None
    # Connections inherit it. asyncio sets it only on sockets that it created itself; without it, Nagle's algorithm and
    # the client's delayed ACK hold back the body of each answer for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
