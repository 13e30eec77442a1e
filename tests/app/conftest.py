"""A workspace with a small data set, and a captioning service in a thread that says what tests want."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app import session


class Service:
    """Answers by the contract of `POST /v1/captions`, `/readyz` and `/v1/model`.

    Attributes:
        ready: whether there is a model.
        captions: what it says of every picture, best first.
        error: if set, what it says instead.
        asked: how many captions were wanted of each picture.
        most: captions of a picture, at most; it answers 429 if more are wanted.
        changes_after: pictures after which the next version captions.
        challenger: what the challenger says of every picture; None if there is no challenger.
    """

    def __init__(self) -> None:
        self.ready = True
        self.captions = ["a red car", "a car", "a red thing"]
        self.error: str | None = None
        self.asked: list[int] = []
        self.most = 100
        self.changes_after = 1_000_000
        self.version = 7
        self.challenger: str | None = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", f"{len(body)}")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if not service.ready:
                    self.answer(503, {"reason": "models:/toy has no version", "detail": "not ready"})
                elif self.path == "/readyz":
                    self.answer(200, {"ready": True})
                elif "challenger" in self.path and service.challenger is None:
                    self.answer(503, {"detail": "not ready: models:/toy has no challenger"})
                else:
                    number = service.version + ("challenger" in self.path)
                    model = {"name": "toy", "version": number, "alias": "champion", "aliases": ["champion"]}
                    self.answer(200, {**model, "tags": {}, "source": f"models:/toy/{number}"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                parts = BytesParser().parsebytes(head + body).get_payload()
                assert isinstance(parts, list)
                named = [(part.get_param("name", header="content-disposition"), part) for part in parts]  # type: ignore[union-attr]
                n = int(next(part.get_payload() for name, part in named if name == "n"))  # type: ignore[union-attr,arg-type]
                files = [part for name, part in named if name == "files"]
                if n > service.most:
                    self.answer(429, {"detail": "busy"})
                    return
                changed = len(service.asked) >= service.changes_after
                service.asked += [n] * len(files)
                challenges = any(name == "challenger" for name, _ in named)
                if challenges and service.challenger is None:
                    self.answer(503, {"detail": "not ready: models:/toy has no challenger"})
                    return
                captions = [str(service.challenger)] if challenges else service.captions[:n]
                said = {"captions": captions, "scores": [-0.1 - k for k in range(len(captions))]}
                results = [{"error": service.error} if service.error else said for _ in files]
                self.answer(
                    200,
                    {"model": {"name": "toy", "version": service.version + challenges + changed}, "results": results},
                )

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv(session.SERVICE, made.url)
    session.client.clear()
    yield made
    session.client.clear()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def data_set(workspace: Path, bring_data_set: Callable[..., None]) -> Path:
    """The workspace with a data set of 40 drawn pictures."""
    bring_data_set(workspace, 40, {"ingest.sources": ["sample"]})
    return workspace
