"""What a crash left, put in order without a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.workspace import reconcile
from pipeline.runtime.atomic_files import write_json

LOCK = Path(".dvc/tmp/rwlock")


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    LOCK.parent.mkdir(parents=True)
    return []


def write(pid: int) -> None:
    write_json(LOCK, {"write": {"/a": {"pid": pid, "cmd": "dvc repro"}}, "read": {"/b": [{"pid": pid, "cmd": "x"}]}})


def test_a_lock_of_a_dvc_that_works_stays(logged: list[str]) -> None:
    write(os.getpid())
    reconcile.dead_lock(logged.append)
    assert LOCK.exists()
    assert logged == []


def test_a_lock_is_removed_whose_writer_is_gone_or_whose_number_another_process_has(logged: list[str]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(gone.pid)
    reconcile.dead_lock(logged.append)
    assert not LOCK.exists()

    write(os.getpid())
    os.utime(LOCK, (time.time() - 24 * 3600,) * 2)  # this process began since
    reconcile.dead_lock(logged.append)
    assert not LOCK.exists()
    assert logged == [f"removed {LOCK}: the DVC process that held it has died"] * 2


@pytest.mark.parametrize("torn", ["", "[]", '{"write": {"/a": 1}, "read": {}}'])
def test_a_lock_that_was_half_written_is_removed(logged: list[str], torn: str) -> None:
    LOCK.write_text(torn)
    reconcile.dead_lock(logged.append)
    assert not LOCK.exists()


def test_no_lock_and_an_empty_one_are_nothing_to_tell(logged: list[str]) -> None:
    reconcile.dead_lock(logged.append)
    write_json(LOCK, {"write": {}, "read": {}})
    reconcile.dead_lock(logged.append)
    assert LOCK.exists()
    assert logged == []
