"""Where MLflow's pages are, for the web page's link."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking import ui


def test_the_address_is_known_while_the_command_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ui.mlflow_pages() is None
    with ui._recorded("http://127.0.0.1:5000/#/x"):
        assert ui.mlflow_pages() == "http://127.0.0.1:5000/#/x"
        with monkeypatch.context() as patch:
            patch.setattr(ui.process_identity, "is_alive", lambda process: False)
            assert ui.mlflow_pages() is None, "a killed command leaves its record"
    assert ui.mlflow_pages() is None


def test_behind_a_proxy_the_pages_have_the_address_that_is_set(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv(ui.PAGES, "https://captions.example.org/mlflow/")
    assert ui.mlflow_pages() == "https://captions.example.org/mlflow/"


def test_a_servers_own_address_is_shown_without_its_password(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow.example:5000")
    address = ui.mlflow_pages()
    assert address is not None
    assert "mlflow.example:5000" in address
    assert "secret" not in address
