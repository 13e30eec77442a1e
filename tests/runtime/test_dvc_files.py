"""DVC's lock file and data files after a kill, held against DVC's own reading of them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import paths
from pipeline.runtime import dvc_files
from pipeline.runtime.atomic_files import write_json

LOCK = """schema: '2.0'
stages:
  ingest@sample:
    cmd: python -m pipeline.ingest sample
    deps:
    - path: data/raw/sample
      hash: md5
      md5: ab111111111111111111111111111111.dir
      size: 123
      nfiles: 2
    params:
      params.yaml:
        ingest.image_size: 256
        ingest.exclude: []
    outs:
    - path: data/ingest/sample
      hash: md5
      md5: ab222222222222222222222222222222.dir
      size: 123
      nfiles: 2
  build:
    cmd: python -m pipeline.build
    deps:
    - path: data/ingest
      md5: ab333333333333333333333333333333
    outs:
    - path: data/dataset
      hash: md5
      md5: ab444444444444444444444444444444.dir
"""
SOURCE = """outs:
- md5: ab555555555555555555555555555555.dir
  size: 123
  nfiles: 2
  hash: md5
  path: sample
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dvc_files.RWLOCK.parent.mkdir(parents=True)


def write_lock(pid: int) -> None:
    held = {"write": {"/a": {"pid": pid, "cmd": "dvc repro"}}, "read": {"/b": [{"pid": pid, "cmd": "x"}]}}
    write_json(dvc_files.RWLOCK, held)


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_the_lock_of_a_running_process_stays() -> None:
    write_lock(os.getpid())
    assert not dvc_files.has_dead_lock()
    assert not dvc_files.remove_dead_lock()
    assert dvc_files.RWLOCK.exists()
    assert dvc_files.is_at_work()


def test_a_lock_is_dead_if_its_process_is_gone_or_another_has_its_id() -> None:
    write_lock(dead_pid())
    assert dvc_files.has_dead_lock()
    assert not dvc_files.is_at_work()
    assert dvc_files.remove_dead_lock()
    assert not dvc_files.RWLOCK.exists()

    write_lock(os.getpid())
    os.utime(dvc_files.RWLOCK, (time.time() - 24 * 3600,) * 2)  # this process began since
    assert dvc_files.remove_dead_lock()


@pytest.mark.parametrize("torn", ["", "[]", '{"write": {"/a": 1}, "read": {}}', '{"write": {"/a"'])
def test_a_torn_lock_is_dead_unless_dvc_is_writing_it_now(torn: str) -> None:
    dvc_files.RWLOCK.write_text(torn)
    with Path(".dvc/tmp/rwlock.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # as DVC does
        assert not dvc_files.has_dead_lock()
        assert not dvc_files.remove_dead_lock()
        assert dvc_files.is_at_work()
    assert dvc_files.has_dead_lock()
    assert dvc_files.remove_dead_lock()
    assert not dvc_files.has_dead_lock()


def test_a_lock_that_names_nobody_is_not_dead() -> None:
    write_json(dvc_files.RWLOCK, {"write": {}, "read": {}})
    assert not dvc_files.has_dead_lock()
    write_json(dvc_files.RWLOCK, {})  # what DVC leaves after its last release
    assert not dvc_files.has_dead_lock()


def refused_by_dvc(path: Path, text: str) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA, COMPILED_SINGLE_STAGE_SCHEMA
    from voluptuous import Invalid

    schema = COMPILED_SINGLE_STAGE_SCHEMA if path.suffix == ".dvc" else COMPILED_LOCKFILE_SCHEMA
    try:
        schema(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, Invalid):
        return True
    return False


@pytest.mark.parametrize(("name", "whole"), [("dvc.lock", LOCK), ("sample.dvc", SOURCE)])
def test_whatever_dvc_refuses_after_a_cut_is_torn(name: str, whole: str) -> None:
    """Cut at every byte. What DVC still reads is only stale, and the next `dvc repro` writes it again."""
    path, refused, torn = Path(name), 0, 0
    for length in range(len(whole)):
        path.write_text(whole[:length])
        if refused_by_dvc(path, whole[:length]):
            refused += 1
            assert dvc_files.is_torn(path), whole[:length]
        torn += dvc_files.is_torn(path)
    assert refused > len(whole) / 3
    assert torn < len(whole)
    path.write_text(whole)
    assert not refused_by_dvc(path, whole)
    assert not dvc_files.is_torn(path)


def test_torn_data_files_are_found_where_they_can_be() -> None:
    files = [paths.DVC_LOCK, Path("data/raw/a.dvc"), Path("data/raw/b/c.zip.dvc"), Path("models/git-demo.dvc")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LOCK if file == paths.DVC_LOCK else SOURCE)
    Path(".work/clone/data").mkdir(parents=True)
    Path(".work/clone/data/of-the-clone.dvc").write_text("")
    assert dvc_files.torn_data_files() == []
    for file in files:
        file.write_text(file.read_text().rpartition("md5: ")[0] + "md5:")
    assert sorted(dvc_files.torn_data_files()) == sorted(files)
