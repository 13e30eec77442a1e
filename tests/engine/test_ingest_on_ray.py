"""Ingest by the workers of Ray: the bytes of `local`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import ingest
from pipeline.config import params
from pipeline.config.errors import DataError
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.synthetic.sample import write_sample
from tests.conftest import environment, jpeg, set_params

# (`importorskip` would import Ray before its token is set.)
pytestmark = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]

OUTPUTS = (Path("data/ingest/s"), Path("reports/ingest/s.json"))


def ingest_by(engine: str, **settings: Any) -> str:
    """Ingest the source `s` from scratch, and return the hash of all that was written."""
    set_params(Path(), {"ingest.sources": ["s"], "runtime.engine": engine, "runtime.ray_workers": 2})
    set_params(Path(), {f"runtime.{key}": value for key, value in settings.items()})
    for out in OUTPUTS:
        subprocess.run(["rm", "-rf", out], check=True)
    ingest.run(params.load(), Namespace(source="s"))
    return sha256_of(*OUTPUTS)


def test_the_outputs_are_those_of_local_byte_by_byte(workspace: Path) -> None:
    """The sample has damaged pictures, duplicates, pictures without captions and captions without pictures."""
    write_sample(workspace / "data/raw/s", pictures=150, seed=3)
    (workspace / "data/raw/s/large.jpg").write_bytes(jpeg(size=(900, 700)))
    set_params(workspace, {"ingest.min_side": 8})
    expected = ingest_by("local")
    assert ingest_by("ray") == expected
    files = read_json(OUTPUTS[1])["files"]
    assert files["pictures_kept"] >= 150
    assert files["set_aside"]["damaged"] == files["set_aside"]["same_bytes"] == 1
    # What the last run decoded is not decoded again.
    ingest.run(params.load(), Namespace(source="s"))
    assert sha256_of(*OUTPUTS) == expected


def test_too_many_bad_pictures_stop_the_run_as_with_local(workspace: Path) -> None:
    write_sample(workspace / "data/raw/s", pictures=12, seed=3)
    set_params(workspace, {"ingest.max_set_aside": 0.01})
    found = []
    for engine in ("local", "ray"):
        with pytest.raises(DataError) as caught:
            ingest_by(engine)
        found.append(str(caught.value))
    assert found[0] == found[1]
    assert not OUTPUTS[0].exists()


def test_sigterm_ends_the_run_and_its_ray_processes(workspace: Path) -> None:
    write_sample(workspace / "data/raw/s", pictures=600, seed=3)
    set_params(workspace, {"ingest.sources": ["s"], "runtime.engine": "ray", "runtime.ray_workers": 1})
    stage = subprocess.Popen(
        [sys.executable, "-m", "pipeline.ingest", "s"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not list(Path("data/ingest/.s.partial").glob("*")) if Path("data/ingest").is_dir() else True:
        assert stage.poll() is None, stage.stderr.read() if stage.stderr else ""
        time.sleep(0.05)
    children = psutil.Process(stage.pid).children(recursive=True)
    stage.send_signal(signal.SIGTERM)
    _, errors = stage.communicate(timeout=120)
    assert stage.returncode == 75, errors
    assert errors.splitlines()[-1].startswith("ingest: ended by SIGTERM")
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert not list(Path("data/ingest").glob("*"))
