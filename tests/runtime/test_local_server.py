from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime import local_server
from pipeline.runtime.local_server import LOOPBACK, LocalServer, any_port, free_port, is_free

SERVES = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that serves on the port in its first argument."""
    (tmp_path / "some_server.py").write_text(SERVES)
    monkeypatch.chdir(tmp_path)
    return "some_server"


def test_a_port_on_which_a_program_answers_on_all_addresses_is_taken() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(LOOPBACK, port)
        assert port < free_port(LOOPBACK, port) < port + 20
        with pytest.raises(ConfigError, match=f"--port {port}: is taken"):
            free_port(LOOPBACK, 1, wanted=port)


@pytest.mark.parametrize("port", [-1, 0, 70_000])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="is taken or not allowed"):
        free_port(LOOPBACK, 1, wanted=port)


def test_the_wanted_port_is_used() -> None:
    port = any_port()
    assert free_port(LOOPBACK, 1, wanted=port) == port


def test_a_server_runs_until_it_is_ended(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # for the world outside
    port = any_port()
    server = LocalServer("it", [module, f"{port}"], tmp_path / "logs" / "log", {})
    try:
        server.wait_until_it_answers(f"http://{LOOPBACK}:{port}/")
        assert not is_free(LOOPBACK, port)
    finally:
        server.end()
    end = time.monotonic() + 20
    while not is_free(LOOPBACK, port):
        assert time.monotonic() < end, "the server goes on"
        time.sleep(0.1)


def test_a_server_that_ends_at_once_is_one_line_with_its_log(tmp_path: Path) -> None:
    server = LocalServer("the page", ["no_such_module"], tmp_path / "log", {})
    with pytest.raises(TemporaryError, match="the page did not start; see .*log"):
        server.wait_until_it_answers(f"http://{LOOPBACK}:{any_port()}/")
    assert "no_such_module" in (tmp_path / "log").read_text()
    with pytest.raises(TemporaryError, match="the page ended with exit code 1"):
        server.watch()
    server.end()


def test_a_server_that_dies_is_restarted_with_growing_waits_while_another_is_watched(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(local_server, "_LOOK_SECONDS", 0.05)
    (tmp_path / "short.py").write_text("import time; time.sleep(3)")
    (tmp_path / "dies.py").write_text("print('started', flush=True)")
    dies = LocalServer("the service", ["dies"], tmp_path / "dies.log", {})
    watched = LocalServer("the page", ["short"], tmp_path / "page.log", {})
    with pytest.raises(TemporaryError, match="the page ended with exit code 0"):
        watched.watch(dies)
    dies.end()
    starts = (tmp_path / "dies.log").read_text().count("started")
    assert 2 <= starts <= 8, "each wait is twice as long as the one before"
    assert "the service ended with exit code 0; restarting it" in capsys.readouterr().out
