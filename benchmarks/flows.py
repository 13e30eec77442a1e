"""What the flows cost where there is nothing to do: over `dvc repro`, and until a retraining knows so."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import Figure, seconds
from benchmarks.overhead import ENVIRONMENT, ROOT, ours

RUNS = 7
PORT = 4917
API = f"http://127.0.0.1:{PORT}/api"
GIT = ["git", "-c", "user.name=benchmarks", "-c", "user.email=benchmarks@localhost"]


def command(folder: Path, *words: str, **more: str) -> Callable[[], object]:
    """Runs a command in a folder, with Prefect's files beside it."""
    own = {"PREFECT_HOME": str(folder.parent / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **more}
    return lambda: subprocess.run(words, cwd=folder, env={**ENVIRONMENT, **own}, check=True, capture_output=True)


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """A Prefect server that runs."""
    words = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)]
    own = {"PREFECT_HOME": str(folder.parent / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with subprocess.Popen(
        words, env={**ENVIRONMENT, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            while not answers():
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def answers() -> bool:
    """Whether the server is there."""
    try:
        with urllib.request.urlopen(f"{API}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def above(figure: str, flow: Callable[[], object], repro: Callable[[], object], goal: float) -> Figure:
    """The seconds that a flow takes more than `dvc repro`, both with nothing to do."""
    flow(), repro()
    times = [(seconds(flow), seconds(repro)) for _ in range(RUNS)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return Figure(
        figure=figure,
        value=round(first - second, 2),
        unit="s",
        goal=goal,
        better="lower",
        runs=RUNS,
        a=f"`python -m flows.train`: {first:.2f} s",
        b=f"`dvc repro`: {second:.2f} s",
    )


def figures() -> list[Figure]:
    """All three figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = ours(Path(temporary) / "ours")
        shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "data" / "remote", folder / "data" / "remote")
        for name in ("models/git-demo.dvc", ".dvc/config"):
            shutil.copy(ROOT / name, folder / name)
        for words in (["add", "-A"], ["commit", "-qm", "as it is"]):
            command(folder, *GIT, *words)()
        train, retrain = ([sys.executable, "-m", f"flows.{name}"] for name in ("train", "retrain"))
        repro = command(folder, "dvc", "repro")
        alone = above("the training flow over `dvc repro`, no server", command(folder, *train), repro, goal=25)
        with server(folder):
            with_server = above(
                "the training flow over `dvc repro`, a server running",
                command(folder, *train, PREFECT_API_URL=API),
                repro,
                goal=10,
            )
            nothing_new = command(folder, *retrain, PREFECT_API_URL=API)
            nothing_new()  # the first one makes the clone and promotes
            times = [seconds(nothing_new) for _ in range(RUNS)]
    until = Figure(
        figure="the retraining flow until it knows that nothing is new, a server running",
        value=round(statistics.median(times), 2),
        unit="s",
        goal=10,
        better="lower",
        runs=RUNS,
        a="`python -m flows.retrain`",
        b="",
    )
    return [alone, with_server, until]
