"""The stage `register` on a full disk, on a real small file system."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import params
from pipeline.config.errors import TemporaryError
from pipeline.data.dataset import read_examples
from pipeline.runtime.atomic_files import read_json
from pipeline.tracking import runs
from tests.conftest import run, set_params

REGISTER = (sys.executable, "-m", "pipeline.register")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    place = tmp_path / "small disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def left_free(disk: Path, free: int) -> Path:
    """Fill a disk up to so many bytes, with a file that is returned."""
    file, status = disk / "filler", os.statvfs(disk)
    file.write_bytes(b"x" * (status.f_bavail * status.f_bsize - free))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 16 * 1024, 512 * 1024])
def test_a_full_disk_is_named_and_the_next_registration_cleans_up(loop: Path, small_disk: Path, free: int) -> None:
    """The disk fills up while MLflow writes its database, or while it copies the model."""
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{small_disk / 'mlflow.db'}"}
    before = {file: file.read_bytes() for file in (loop / "reports").glob("*.json")}
    made = run(loop, sys.executable, "-c", "from pipeline.tracking import runs; runs.client()", **uri)
    assert made.returncode == 0, made.stderr
    filler = left_free(small_disk, free)
    done = run(loop, *REGISTER, **uri)
    assert done.returncode == 75, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"register: the disk is full at {small_disk}")
    assert "Traceback" not in done.stderr
    assert "server" not in done.stderr
    assert {file: file.read_bytes() for file in before} == before
    filler.unlink()
    again = run(loop, *REGISTER, **uri)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "models:/image-captioning/1 is new in the registry" in again.stdout
    models = [place for place in (small_disk / "mlartifacts").glob("*/models/*") if any(place.rglob("MLmodel"))]
    assert len(models) == 1, again.stdout
    assert not list((loop / ".work/tmp").glob("*"))


@pytest.mark.parametrize(
    "error",
    [OSError("[('a', 'b', '[Errno 28] No space left on device')]"), runs.MlflowException("database or disk is full")],
)
def test_a_full_disk_in_other_words_is_no_fault_of_a_server(workspace: Path, error: Exception) -> None:
    """shutil and SQLite have no errno for it."""
    with pytest.raises(TemporaryError, match="^the disk is full at /"), runs.reachable():
        raise error
    with pytest.raises(TemporaryError, match="^the disk is full at /some/file"), runs.reachable():
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")


@pytest.mark.slow
def test_a_version_may_be_registered_without_the_training_captions(loop: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    shutil.copytree(loop, private, symlinks=True)
    set_params(private, {"register.training_captions": False})
    done = run(private, *REGISTER, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = {place.parent for place in tmp_path.glob("mlartifacts/**/MLmodel")}
    settings = read_json(model / "artifacts/settings/neighbours.json")
    assert settings["generation"]["beams"] == params.load(private / "params.yaml").evaluate.beams
    assert not list(model.rglob("captions.jsonl"))
    shown = {text for example in read_examples(private / "data/dataset/test") for text in example.captions}
    learned = {text for example in read_examples(private / "data/dataset/train") for text in example.captions} - shown
    assert len(learned) > 100
    stored = b"\n".join(file.read_bytes() for file in model.rglob("*") if file.is_file())
    assert not [text for text in learned if text.encode() in stored or json.dumps(text).encode()[1:-1] in stored]
