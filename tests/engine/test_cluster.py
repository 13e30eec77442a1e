"""A Ray cluster of three nodes, which die: the bytes of `local`."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime.atomic_files import sha256_of
from pipeline.synthetic.sample import write_sample
from pipeline.synthetic.scenes import draw, random_scene
from tests.conftest import ROOT, environment, run, set_params
from tests.engine.cluster import TOKEN, RunningCluster, running_cluster

pytestmark = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]

KILLS = 10
INGEST = ("-m", "pipeline.ingest", "s")
CAPTION = ("-m", "pipeline.cli", "caption", "photos", "--model", str(ROOT / "models/git-demo"), "--out")
INGESTED = (Path("data/ingest/s"), Path("reports/ingest/s.json"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(3, tmp_path_factory.mktemp("cluster") / "log") as running:
        yield running


def lose_a_node_during(
    cluster: RunningCluster, begun: Callable[[], bool], chance: random.Random, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run a command, and kill a node that works on it at a time by chance after it has begun."""
    started = subprocess.Popen(
        [sys.executable, *words], env=environment(PYTHONPATH=str(ROOT), **TOKEN), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not begun():
            assert started.poll() is None, started.communicate()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        assert started.poll() is None, "was done before the node was killed"
        at_work = [i for i, node in enumerate(cluster.nodes) if cluster.workers_of(node)]
        cluster.kill(chance.choice(at_work))
        output, errors = started.communicate(timeout=300)
    finally:
        started.kill()
        started.wait()
    cluster.add()
    return subprocess.CompletedProcess(words, started.returncode, output, errors)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ingest_outlives_its_nodes(workspace: Path, cluster: RunningCluster) -> None:
    write_sample(workspace / "data/raw/s", pictures=3000, seed=3)
    set_params(workspace, {"ingest.sources": ["s"]})
    local = run(workspace, sys.executable, *INGEST)
    assert local.returncode == 0, local.stderr
    expected = sha256_of(*INGESTED)
    set_params(workspace, {"runtime.engine": "ray", "runtime.ray_address": cluster.address})
    chance, partial = random.Random(0), Path("data/ingest/.s.partial")
    for _ in range(KILLS):
        for out in INGESTED:
            subprocess.run(["rm", "-rf", out], check=True)
        done = lose_a_node_during(cluster, lambda: partial.is_dir() and any(partial.iterdir()), chance, *INGEST)
        assert done.returncode == 0, done.stderr
        # Only the last line: above it Ray prints that a node died.
        assert done.stdout.splitlines()[-1] == local.stdout.splitlines()[-1]
        assert sha256_of(*INGESTED) == expected


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_captioning_outlives_its_nodes(workspace: Path, cluster: RunningCluster) -> None:
    photos, scenes, grain = workspace / "photos", random.Random(0), np.random.default_rng(0)
    photos.mkdir()
    for k in range(500):
        draw(random_scene(scenes), grain).save(photos / f"{k:03}.jpg")
    set_params(workspace, {"runtime.caption_batch_size": 4, "runtime.decode_threads": 1})
    assert run(workspace, sys.executable, *CAPTION, "local.jsonl").returncode == 0
    set_params(workspace, {"runtime.engine": "ray", "runtime.ray_address": cluster.address})
    chance = random.Random(1)
    for kill in range(KILLS):
        out = Path(f"{kill}.jsonl")
        done = lose_a_node_during(
            cluster, lambda out=out: out.exists() and out.stat().st_size > 0, chance, *CAPTION, str(out)
        )
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == Path("local.jsonl").read_bytes()


@pytest.mark.slow
def test_the_death_of_the_head_is_75_and_the_captions_stay(workspace: Path, tmp_path: Path) -> None:
    photos, scenes, grain = workspace / "photos", random.Random(0), np.random.default_rng(0)
    photos.mkdir()
    for k in range(2000):
        draw(random_scene(scenes), grain).save(photos / f"{k:04}.jpg")
    out = Path("out.jsonl")
    with running_cluster(1, tmp_path / "log") as cluster:
        set_params(workspace, {"runtime.caption_batch_size": 4, "runtime.ray_address": cluster.address})
        started = subprocess.Popen(
            [sys.executable, *CAPTION, str(out), "--engine", "ray"], env=environment(PYTHONPATH=str(ROOT), **TOKEN),
            text=True, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            while not out.exists() or out.stat().st_size == 0:
                assert started.poll() is None, started.communicate()
                time.sleep(0.01)
            cluster.kill_head()
            _, errors = started.communicate(timeout=120)
        finally:
            started.kill()
    assert started.returncode == TemporaryError.exit_code, errors
    assert errors.splitlines()[-1] == (
        f"caption: Ray: the head of the cluster, {cluster.address}, has not answered for 30 s; start the cluster again,"
        " then run this again"
    )
    captioned = out.read_bytes().count(b"\n")
    assert 0 < captioned < 2000
    done = run(workspace, sys.executable, *CAPTION, str(out), "--engine", "local", PYTHONPATH=str(ROOT))
    assert f"{captioned} captioned before" in done.stdout


@pytest.mark.slow
def test_a_wrong_token_is_one_line(workspace: Path, cluster: RunningCluster) -> None:
    write_sample(workspace / "data/raw/s", pictures=5, seed=3)
    set_params(workspace, {"ingest.sources": ["s"], "runtime.engine": "ray", "runtime.ray_address": cluster.address})
    done = run(workspace, sys.executable, *INGEST, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="1" * 64)
    assert done.returncode == ConfigError.exit_code
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "the cluster asks for another token" in done.stderr


@pytest.mark.slow
def test_another_version_of_ray_is_one_line(workspace: Path, tmp_path: Path) -> None:
    write_sample(workspace / "data/raw/s", pictures=5, seed=3)
    with running_cluster(0, tmp_path / "log", "9.9.9") as other:
        set_params(workspace, {"ingest.sources": ["s"], "runtime.engine": "ray", "runtime.ray_address": other.address})
        done = run(workspace, sys.executable, *INGEST, **TOKEN)
    assert done.returncode == ConfigError.exit_code
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Ray: 9.9.9" in done.stderr


def test_a_cluster_that_does_not_answer_is_one_line(workspace: Path) -> None:
    write_sample(workspace / "data/raw/s", pictures=5, seed=3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        set_params(workspace, {"ingest.sources": ["s"], "runtime.engine": "ray", "runtime.ray_address": address})
        done = run(workspace, sys.executable, *INGEST)
    assert done.returncode == TemporaryError.exit_code
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"runtime.ray_address: {address}: found no cluster" in done.stderr
