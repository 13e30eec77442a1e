"""The service as a process: addresses, tokens, a real registry, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.models.weights import weights_hash
from pipeline.serving import following, limits, server
from pipeline.serving.client import BusyError, Client, ServiceError, UnavailableError
from pipeline.serving.following import ModelSource
from pipeline.tracking import registration, registry, runs
from tests.conftest import ROOT, environment, set_params

COMMAND = (sys.executable, "-m", "pipeline.cli", "serve-model")
TOKEN = {"IMAGE_CAPTIONING_TOKEN": "a long random text"}


class Process:
    """`image-captioning serve-model` in a workspace whose checkpoint is git-demo."""

    def __init__(self, folder: Path, *options: str, **more: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "--port", "0", *options], cwd=folder, env=environment(PYTHONPATH=str(ROOT), **more), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.printed, self.pid = "", self._process.pid
        self.port = int(re.findall(r"http://.+:(\d+)/docs", self.read_until("/docs"))[0])
        self.url = f"http://127.0.0.1:{self.port}"
        self.read_until("serving models")

    def read_until(self, words: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            self.printed += line
            if words in line:
                return line
        raise AssertionError(self.printed)

    def ask_to_end(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        self.ask_to_end()
        assert self._process.stdout
        self.printed += self._process.stdout.read()
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def served(workspace: Path, mlflow_db: Path) -> Iterator[Callable[..., Process]]:
    shutil.copy(mlflow_db, workspace)
    shutil.copytree(ROOT / "models" / "git-demo", workspace / "models" / "finetune")
    started: list[Process] = []

    def start(*options: str, **more: str) -> Process:
        started.append(Process(workspace, *options, **more))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_it_answers_until_sigterm_and_finishes_what_it_accepted(
    served: Callable[..., Process], workspace: Path, pictures: list[bytes]
) -> None:
    set_params(workspace, {"serving.max_batch": 1, "serving.max_wait_ms": 0.0})
    process = served()
    assert "no version is registered" in process.printed
    with Client(process.url) as client, ThreadPoolExecutor(4) as threads:
        assert client.ready().ready
        assert client.model().source == "models/finetune"
        expected = [result.captions for result in client.caption(pictures).results]
        many = [threads.submit(client.caption, pictures * 3) for _ in range(2)]
        deadline = time.monotonic() + 20
        while "captions_queue_pictures 48.0" not in client._http.get("/metrics").text:
            assert time.monotonic() < deadline
        process.ask_to_end()
        assert [[result.captions for result in one.result().results] for one in many] == [expected * 3] * 2
        deadline = time.monotonic() + 20
        while client.ready().ready:
            assert time.monotonic() < deadline
        with pytest.raises(UnavailableError, match="can't be reached"):
            client.caption(pictures[:1])
    assert process.end() == 0
    assert process.printed.endswith("serve-model: ended; 3 requests answered\n")
    assert "Traceback" not in process.printed


def test_beyond_loopback_it_asks_for_the_token(served: Callable[..., Process], pictures: list[bytes]) -> None:
    process = served("--host", "0.0.0.0", **TOKEN)
    with Client(process.url) as client, pytest.raises(ServiceError, match="send the token"):
        client.model()
    with Client(process.url, token=TOKEN["IMAGE_CAPTIONING_TOKEN"]) as client:
        assert client.caption(pictures[:1]).results[0].captions
    assert process.end() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_beyond_loopback_without_a_token_it_does_not_start(workspace: Path, host: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--host", host, "--port", "0"], cwd=workspace, env=environment(PYTHONPATH=str(ROOT)), timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "IMAGE_CAPTIONING_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("", False),
     ("192.0.2.1", False), ("no such host", False)],
)  # fmt: skip
def test_only_loopback_is_loopback(host: str, expected: bool) -> None:
    assert limits.is_loopback(host) is expected


def test_answers_are_not_held_back_by_nagles_algorithm() -> None:
    with server._listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_said_in_one_line(workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: can't listen there"):
            server.serve(params.load(), host="127.0.0.1", port=port, model=None, alias="champion")


def test_the_client_says_what_is_wrong_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    readiness = client.ready()
    assert not readiness.ready
    assert "image-captioning serve-model" in readiness.reason
    with pytest.raises(UnavailableError) as error:
        client.model()
    assert "\n" not in str(error.value)


class Drops(BaseHTTPRequestHandler):
    """Answers, and drops the connections of the requests whose numbers are in `dropped`."""

    protocol_version = "HTTP/1.1"
    dropped: ClassVar[set[int]] = set()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if len(self.asked) in self.dropped:
            self.close_connection = True
            return
        model = {"name": "toy", "version": 3, "alias": None, "aliases": [], "tags": {}, "source": "models:/toy/3"}
        body = json.dumps(model).encode()
        self.send_response(200)
        self.send_header("Content-Length", f"{len(body)}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_the_client_asks_once_more_if_its_connection_was_just_closed() -> None:
    Drops.dropped, Drops.asked = {2, 4, 5}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Drops) as dropping:
        threading.Thread(target=dropping.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{dropping.server_port}") as client:
            assert [client.model().version, client.model().version] == [3, 3]
            assert len(Drops.asked) == 3
            with pytest.raises(UnavailableError, match="can't be reached"):
                client.model()
        dropping.shutdown()
    assert len(Drops.asked) == 5


@pytest.mark.slow
def test_an_idle_connection_is_kept(served: Callable[..., Process]) -> None:
    connection = HTTPConnection("127.0.0.1", served().port)
    for idle in (0, 7):  # uvicorn's own limit is 5 s
        time.sleep(idle)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
    connection.close()


def test_the_client_tells_a_busy_service_from_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {429: BusyError, 503: UnavailableError, 413: ServiceError, 500: ServiceError}
    for status, kind in answers.items():
        client = Client("http://127.0.0.1:9")
        answer = httpx.Response(status, json={"detail": "so\nit is"}, headers={"Retry-After": "7"})
        monkeypatch.setattr(client._http, "request", lambda *a, answer=answer, **k: answer)
        with pytest.raises(kind, match="so it is") as error:
            client.caption([b"x"])
        assert type(error.value) is kind
        if isinstance(error.value, BusyError):
            assert error.value.retry_after == 7


@pytest.mark.parametrize("answer", [{"text": "<html>"}, {"json": []}, {"json": {"a": 1}}])
def test_another_server_at_the_address_is_one_line(answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:9")
    for method in ("request", "get"):
        monkeypatch.setattr(client._http, method, lambda *a, **k: httpx.Response(200, **answer))
    for ask in (client.model, lambda: client.caption([b"x"])):
        with pytest.raises(ServiceError, match=r"^http://127\.0\.0\.1:9: answers, but not as the captioning"):
            ask()
    assert client.ready().ready == isinstance(answer.get("json"), dict)


def test_a_date_as_retry_after_is_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:9")
    late = httpx.Response(429, json={"detail": "busy"}, headers={"Retry-After": "Fri, 27 Nov 2026 12:00:00 GMT"})
    monkeypatch.setattr(client._http, "request", lambda *a, **k: late)
    with pytest.raises(BusyError) as error:
        client.caption([b"x"])
    assert error.value.retry_after == 1


def register(store: object, folder: Path, key: str) -> None:
    """Register git-demo, with a text file that makes its hash another, as a new version."""
    checkpoint = folder / f"version {key}"
    shutil.copytree(ROOT / "models" / "git-demo", checkpoint)
    (checkpoint / "key.txt").write_text(key)
    experiment = runs.experiment(store, "image-captioning")  # type: ignore[arg-type]
    with runs.training_run(store, experiment, key, {}) as run:  # type: ignore[arg-type]
        for file in sorted(checkpoint.iterdir()):
            store.log_artifact(run.id, str(file), "artifacts/finetune")  # type: ignore[attr-defined]
        tags = {"git_commit": key, registry.MODEL_SHA256: weights_hash(checkpoint)}
        registration.register(store, run, "image-captioning", f"runs:/{run.id}", tags, "")  # type: ignore[arg-type]


def test_the_registry_is_asked_for_the_alias_then_the_newest_then_the_workspace(
    workspace: Path, mlflow_db: Path, pictures: list[bytes]
) -> None:
    shutil.copy(mlflow_db, workspace)
    follower = following.Follower(
        ModelSource("image-captioning", "champion", params.load()), 60, say=print, loaded=lambda found: None
    )
    follower.refresh()
    assert follower.current is None
    assert "image-captioning has no version in MLflow, and models/finetune has no checkpoint" in str(follower.problem)

    shutil.copytree(ROOT / "models" / "git-demo", workspace / "models" / "finetune")
    found = []
    store = runs.client()
    follower.refresh()
    found.append(follower.current)
    register(store, workspace, "a")
    register(store, workspace, "b")
    follower.refresh()
    found.append(follower.current)
    registry.make_champion(store, "image-captioning", 1)
    follower.refresh()
    found.append(follower.current)
    store.delete_registered_model_alias("image-captioning", "champion")
    follower.refresh()
    found.append(follower.current)
    said = [(one.found.version, one.found.alias, one.found.source) for one in found if one]
    assert said == [
        (None, None, "models/finetune"),
        (2, None, "models:/image-captioning/2"),
        (1, "champion", "models:/image-captioning/1"),
        (2, None, "models:/image-captioning/2"),
    ]
    assert follower.current is not None
    assert follower.current.found.tags["git_commit"] == "b"


def test_a_retrained_checkpoint_of_the_workspace_is_loaded(workspace: Path, mlflow_db: Path) -> None:
    shutil.copy(mlflow_db, workspace)
    shutil.copytree(ROOT / "models" / "git-demo", workspace / "models" / "finetune")
    loaded: list[str] = []
    follower = following.Follower(
        ModelSource("image-captioning", "champion", params.load()),
        60,
        say=print,
        loaded=lambda found: loaded.append(found.source),
    )
    follower.refresh()
    follower.refresh()
    assert len(loaded) == 1
    (workspace / "models/finetune/model.safetensors").touch()
    follower.refresh()
    assert len(loaded) == 2
