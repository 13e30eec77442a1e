"""An S3 store for tests: moto's server, which fails in the ways that real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from werkzeug.serving import make_server

from pipeline.runtime import bucket

moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="needs moto[s3]")


class Store:
    """An S3 store.

    Attributes:
        fails: decides which requests get an error: method and path -> status and code, or None.
        ignored: a header that it does not know, as WSGI names it; "" for none.
        asked: method and path of each request.
    """

    def __init__(self) -> None:
        self.ignored = ""
        self.fails: Callable[[str, str], tuple[str, str] | None] = lambda method, path: None
        self.asked: list[str] = []
        self._moto = moto.DomainDispatcherApplication(moto.create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode()
        self.asked.append(f"{method} {path}")
        environ.pop(self.ignored, None)
        if not (failure := self.fails(method, path)):
            return self._moto(environ, start_response)
        status, code = failure
        answer = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))])
        return [] if method == "HEAD" else [answer]


@contextmanager
def running_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Run a store that AWS's variables name; a request that fails is repeated at once, and not for long."""
    app = Store()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=moto.MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(bucket, "_PATIENCE_SECONDS", 0.1)
    httpx.post(f"http://127.0.0.1:{server.server_port}/moto-api/reset", timeout=60).raise_for_status()
    try:
        yield app
    finally:
        server.shutdown()


def put(name: str, key: str, body: bytes) -> None:
    """Write an object to a bucket."""
    boto3.client("s3").put_object(Bucket=name, Key=key, Body=body)
