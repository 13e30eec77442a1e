"""MLflow's SQLite file: what stops MLflow is said at once, and a training goes on without it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pipeline.config.errors import ConfigError
from pipeline.tracking import database
from pipeline.tracking.live import Live
from tests.conftest import ROOT, run

KEY = "a" * 64


def test_the_file_of_a_tracking_uri() -> None:
    assert database.file_of("sqlite:///mlflow.db") == Path("mlflow.db")
    assert database.file_of("sqlite:////data/mlflow.db?timeout=3") == Path("/data/mlflow.db")
    assert database.file_of("sqlite:///:memory:") is None
    assert database.file_of("http://127.0.0.1:5000") is None


def test_a_database_in_a_missing_folder_is_refused_at_once(workspace: Path) -> None:
    """MLflow itself creates the folder, or tries it again for minutes where it may not."""
    began = time.monotonic()
    uri = f"sqlite:///{workspace}/no/such/dir/x.db"
    for command in (["trained-on", "x.jpg"], ["doctor"]):
        done = run(
            workspace, sys.executable, "-m", "pipeline.cli", *command, MLFLOW_TRACKING_URI=uri, PYTHONPATH=str(ROOT)
        )
        if command == ["doctor"]:
            assert done.returncode == 0  # there is nothing to fix
        else:
            assert done.returncode == 78, done.stderr
            assert done.stderr.count("\n") == 1
            assert "the folder" in done.stderr
            assert "does not exist; create it" in done.stderr
    assert time.monotonic() - began < 60
    assert not (workspace / "no").exists()


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_training_goes_on_without_a_damaged_database(
    workspace: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mlflow.db").write_bytes(content)
    began = time.monotonic()
    with Live("x", KEY, {"a": 1}, "name") as live:
        live.metrics({"loss": 1.0}, 1)
    assert time.monotonic() - began < 20
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "mlflow.db: MLflow's database is damaged" in said
    assert "`image-captioning doctor` fixes this (training continues" in said


def test_a_training_goes_on_when_the_database_is_damaged_meanwhile(
    workspace: Path, mlflow_db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mlflow.db").write_bytes(mlflow_db.read_bytes())
    with Live("x", KEY, {"a": 1}, "name") as live:
        data = bytearray(Path("mlflow.db").read_bytes())
        Path("mlflow.db").write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
        live.metrics({"loss": 1.0}, 1)
        live.metrics({"loss": 1.0}, 2)
    said = capsys.readouterr().err
    assert said.count("no live curves") == 1
    assert "Traceback" not in said
    assert "`image-captioning doctor` fixes this (training continues" in said


def test_every_command_that_meets_a_damaged_database_names_the_doctor(workspace: Path) -> None:
    Path("mlflow.db").write_bytes(b"not a database")
    done = run(workspace, sys.executable, "-m", "pipeline.cli", "trained-on", "x.jpg", PYTHONPATH=str(ROOT))
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "is damaged (file is not a database); `image-captioning doctor` fixes this" in done.stderr


def test_a_whole_an_empty_and_a_locked_database_are_not_damaged(workspace: Path, mlflow_db: Path) -> None:
    file = Path("mlflow.db")
    assert database.damage(file, thorough=True) is None
    file.touch()
    assert database.damage(file, thorough=True) is None
    file.write_bytes(mlflow_db.read_bytes())
    assert database.damage(file, thorough=True) is None
    with pytest.raises(ConfigError, match="does not exist"):
        database.check(Path("nowhere/mlflow.db"))
