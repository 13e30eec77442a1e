from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.config.errors import TemporaryError
from pipeline.runtime import process_identity, workspace_lock
from tests.conftest import ROOT, environment, run

STAGE = """
from pipeline.runtime import entrypoint
if __name__ == "__main__":
    entrypoint.main("build", lambda params, args: "made it", lock=lambda args: "build")
"""


@pytest.fixture
def other() -> Iterator[str]:
    """Another process that lives."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        yield process_identity.identity(psutil.Process(process.pid))
        process.kill()


@pytest.fixture
def stage(workspace: Path) -> Path:
    (workspace / "build.py").write_text(STAGE)
    return workspace


def enter(stage: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run(stage, sys.executable, "build.py", PYTHONPATH=os.fspath(ROOT), **more)


def test_the_second_to_take_a_workspace_is_refused_in_one_line(workspace: Path, other: str) -> None:
    assert workspace_lock.take("the first", other) is None
    with pytest.raises(
        TemporaryError, match=rf"the first \(process {process_identity.pid_of(other)}\) is running"
    ) as caught:
        workspace_lock.take("the second", process_identity.identity())
    assert "\n" not in str(caught.value)
    workspace_lock.give_back(process_identity.identity())  # it is not ours to give
    with pytest.raises(TemporaryError):
        workspace_lock.take("the second", process_identity.identity())
    workspace_lock.give_back(other)
    assert workspace_lock.take("the second", process_identity.identity()) is None
    assert workspace_lock.take("the second", process_identity.identity()) is None


def test_a_dead_process_has_nothing_and_is_told_where_it_should_have_given_back(workspace: Path) -> None:
    workspace_lock.take("the dead", "4194304:1.0")
    before = workspace_lock.take("the living", process_identity.identity())
    assert before
    assert before.who == "the dead"
    workspace_lock.give_back(process_identity.identity())
    workspace_lock.take("`dvc repro`", "4194304:1.0", gives_back=False)
    assert workspace_lock.take("the living", process_identity.identity()) is None


def test_a_claim_that_a_full_disk_cut_off_is_none(workspace: Path) -> None:
    workspace_lock.take("x", process_identity.identity())
    workspace_lock._CLAIM.write_text('{"who": ')
    assert workspace_lock.take("y", process_identity.identity()) is None


def test_a_stage_of_who_has_the_workspace_comes_in_and_others_are_refused(stage: Path, other: str) -> None:
    workspace_lock.take("`flows.train`", other)
    assert enter(stage, IMAGE_CAPTIONING_OWNER=other).returncode == 0
    for who in (
        {},
        {"IMAGE_CAPTIONING_OWNER": process_identity.identity()},
        {"DVC_STAGE": "build"},
        {"DVC_STAGE": "build@x"},
    ):
        refused = enter(stage, **who)
        assert refused.returncode == 75
        assert refused.stderr.startswith("build: `flows.train` (process")
        assert refused.stderr.count("\n") == 1


def test_a_dvc_repro_takes_the_workspace_with_its_first_stage_and_has_it_till_it_ends(stage: Path) -> None:
    shell = f"{shlex.quote(sys.executable)} build.py; true"
    code = f"import subprocess; subprocess.run(['sh', '-c', {shell!r}]); input()"
    more = {"DVC_STAGE": "build", "PYTHONPATH": os.fspath(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=stage, env=environment(**more), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as dvc:
        assert dvc.stdout
        assert b"made it" in dvc.stdout.readline()
        refused = enter(stage)
        assert refused.returncode == 75
        assert f"`dvc repro` (process {dvc.pid}) is running" in refused.stderr
        dvc.kill()
    assert enter(stage).returncode == 0


def test_a_stage_by_hand_takes_nothing(stage: Path) -> None:
    assert enter(stage).returncode == 0
    assert workspace_lock._read() is None


def test_a_stage_whose_dvc_was_killed_takes_nothing_for_the_one_that_adopted_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "build")
    monkeypatch.setattr(process_identity, "starters", lambda: [process_identity.identity(psutil.Process(1))])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["/lib/systemd/systemd", "--user"])
    with pytest.raises(TemporaryError, match="is gone"):
        workspace_lock.enter("build")
    assert workspace_lock._read() is None
