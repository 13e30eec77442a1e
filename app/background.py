"""Run `image-captioning` commands for the page: they take locks, load models and print a last line with the outcome."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from pipeline.config import paths
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json, write_json

_COMMAND = [sys.executable, "-m", "pipeline.cli"]
RETRAIN_LOG = paths.WORK / "app-retrain.log"
_RETRAINING = paths.WORK / "app-retrain.json"


def run(*words: str) -> tuple[bool, str]:
    """Run a command to its end; return whether it succeeded, and the last line that it printed."""
    done = subprocess.run(
        [*_COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
    )
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"ended with exit code {done.returncode}"


def start_retraining() -> None:
    """Start `image-captioning retrain`. It ends with the page; the next retraining continues it."""
    RETRAIN_LOG.parent.mkdir(parents=True, exist_ok=True)
    with RETRAIN_LOG.open("wb") as log:
        child = subprocess.Popen(
            [*_COMMAND, "retrain"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    write_json(_RETRAINING, process_identity.identity(psutil.Process(child.pid)))


def is_retraining() -> bool:
    """Return whether the retraining that this page started is still running."""
    return _RETRAINING.is_file() and process_identity.is_alive(read_json(_RETRAINING))


def log_tail(path: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    if not path.is_file():
        return ""
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
