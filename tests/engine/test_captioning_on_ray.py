"""Bulk captioning by the workers of Ray: the bytes of `local`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.config.errors import ConfigError
from pipeline.synthetic.scenes import draw, random_scene
from tests.conftest import ROOT, environment, jpeg, run, set_params

pytestmark = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]

MODEL = str(ROOT / "models" / "git-demo")


@pytest.fixture
def photos(workspace: Path) -> Path:
    """Forty drawn scenes, and a file that is not a picture."""
    folder = workspace / "photos"
    folder.mkdir()
    rng, grain = random.Random(0), np.random.default_rng(0)
    for k in range(40):
        draw(random_scene(rng), grain).save(folder / f"{k:02}.jpg")
    (folder / "05.jpg").write_bytes(jpeg()[:300])
    set_params(workspace, {"runtime.caption_batch_size": 4, "runtime.ray_workers": 2, "runtime.decode_threads": 1})
    return folder


def words(out: str, engine: str, *more: str) -> list[str]:
    return ["-m", "pipeline.cli", "caption", "photos", "--out", out, "--model", MODEL, "--engine", engine, *more]


def caption(workspace: Path, out: str, engine: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run(workspace, sys.executable, *words(out, engine, *more), PYTHONPATH=str(ROOT))


@pytest.fixture
def started(workspace: Path) -> Iterator[subprocess.Popen[str]]:
    """A run with Ray that has written some captions."""
    running = subprocess.Popen(
        [sys.executable, *words("ray.jsonl", "ray")], cwd=workspace, env=environment(PYTHONPATH=str(ROOT)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out = workspace / "ray.jsonl"
        while not out.exists() or out.read_bytes().count(b"\n") < 4:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        yield running
    finally:
        running.kill()
        running.wait()


def workers_of(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that hold the model."""
    children = psutil.Process(running.pid).children(recursive=True)
    return [child for child in children if child.cmdline() and child.cmdline()[0].startswith("ray::_Worker")]


@pytest.mark.parametrize("more", [(), ("--several", "3", "--seed", "5")])
def test_the_output_is_that_of_local_byte_by_byte(workspace: Path, photos: Path, more: tuple[str, ...]) -> None:
    local, ray = caption(workspace, "local.jsonl", "local", *more), caption(workspace, "ray.jsonl", "ray", *more)
    assert (local.returncode, ray.returncode) == (0, 0), ray.stderr
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    assert ray.stdout.count("39 pictures captioned (") == 1
    assert "1 not readable: ray.jsonl" in ray.stdout
    assert [line for line in ray.stderr.splitlines() if "skipped" in line] == [
        line for line in local.stderr.splitlines() if "skipped" in line
    ]


def test_a_killed_run_is_continued_without_captioning_twice(
    workspace: Path, photos: Path, started: subprocess.Popen[str]
) -> None:
    workers = workers_of(started)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert workers
    assert psutil.wait_procs(workers, timeout=120)[1] == []
    before = Path("ray.jsonl").read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    again = caption(workspace, "ray.jsonl", "ray")
    assert again.returncode == 0, again.stderr
    done = kept.count(b"\n")
    assert f"{done} captioned before" in again.stdout
    assert Path("ray.jsonl").read_bytes().startswith(kept)
    names = [json.loads(line)["file_name"] for line in Path("ray.jsonl").read_text().splitlines()]
    assert names == sorted(path.name for path in photos.iterdir() if path.name != "05.jpg")


def test_a_worker_that_is_killed_is_replaced(workspace: Path, photos: Path, started: subprocess.Popen[str]) -> None:
    workers = workers_of(started)
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    output, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert "39 pictures captioned (" in output
    assert caption(workspace, "local.jsonl", "local").returncode == 0
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()


def test_a_model_that_cannot_be_loaded_is_one_line(workspace: Path, photos: Path) -> None:
    (workspace / "empty").mkdir()
    done = run(
        workspace, sys.executable, "-m", "pipeline.cli", "caption", "photos", "--out", "ray.jsonl", "--engine", "ray",
        "--model", "empty", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == ConfigError.exit_code
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("caption: ")
