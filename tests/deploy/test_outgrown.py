"""All that outgrows one machine in one run: a bucket, Ray for pictures and captions, and two training processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.config import paths
from pipeline.runtime.atomic_files import read_json_lines, sha256_of
from pipeline.synthetic.sample import write_sample
from tests.conftest import TINY, environment, free_port, set_params
from tests.deploy.test_bucket_source import URL, Store

pytestmark = [
    pytest.mark.services,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
]
PICTURES = 120
READABLE = PICTURES + 2  # the sample also has a copy and a picture without a caption, and two damaged ones
CAPTIONS = Path("captions.jsonl")


def last_line_of(*command: str) -> str:
    """Run a module in the current folder, and return the last line of its output."""
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True,
        timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_whole_loop_gives_the_bytes_of_the_engine_local(
    clone: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(tmp_path / "sample", pictures=PICTURES, seed=4)
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    store = Store(monkeypatch)
    try:
        with zipfile.ZipFile(tmp_path / "sample/images.zip") as archive:
            for name in archive.namelist():
                store.put(name, archive.read(name))
        found = []
        for engine in ("ray", "local"):
            monkeypatch.chdir(clone())
            shutil.rmtree("data/raw")
            launch = {"runtime.launch.processes": 2, "runtime.launch.port": free_port()}
            chosen = {"runtime.engine": engine, "runtime.ray_workers": 2, "ingest.sources": ["album"]}
            compared = {"evaluate.decoding.method": "both", "evaluate.decoding.samples": 4}
            compared |= {"runtime.caption_batch_size": 4}  # so that there are several batches
            set_params(Path(), {**TINY, **launch, **chosen, **compared})
            last_line_of(
                "pipeline.cli", "add-bucket", "album", URL, "--captions", str(tmp_path / "sample/captions.csv")
            )
            last_line_of("dvc", "repro")
            said = last_line_of(
                "pipeline.cli", "caption", URL, "--out", str(CAPTIONS), "--model", "models:/image-captioning/1"
            )
            assert said.startswith(f"caption: {READABLE} pictures captioned"), said
            assert len(list(read_json_lines(CAPTIONS))) == READABLE
            outputs = [
                paths.INGEST,
                paths.DATASET,
                paths.MODEL,
                paths.NEIGHBOURS,
                paths.CAPTIONS,
                paths.REGISTER_REPORT,
                CAPTIONS,
            ]
            found.append({str(path): sha256_of(path) for path in outputs})
        assert found[0] == found[1]
    finally:
        store.stop()
