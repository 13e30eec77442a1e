from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows import stages


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the `dvc` beside this Python, which a test makes say what the real one was seen to say."""
    script = tmp_path / "bin" / "dvc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.chdir(tmp_path)
    return script


def failure(dvc: Path, body: str) -> stages.StageError:
    dvc.write_text(f"#!/bin/sh\n{body}\nexit 255\n")
    with pytest.raises(stages.StageError) as caught:
        stages.run("build", lambda line: None)
    return caught.value


@pytest.mark.parametrize(
    ("said", "code", "again"),
    [
        ("failed to run: python -m pipeline.build, exited with 65", 65, False),
        ("failed to run: python -m pipeline.build, exited with 78", 78, False),
        ("failed to run: python -m pipeline.build, exited with 1", 1, False),
        ("failed to run: python -m pipeline.build, exited with 75", 75, True),
        ("failed to run: python -m pipeline.build, exited with -9", -9, True),
        ("failed to run: python -m pipeline.build, exited with 137", 137, True),
        ("'data/x' is busy, it is being blocked by:", 75, True),
    ],
)
def test_the_stages_own_exit_code_decides_whether_it_is_tried_again(
    dvc: Path, said: str, code: int, again: bool
) -> None:
    found = failure(dvc, f'echo "build: its own words"; echo "ERROR: {said}"')
    assert found.code == code
    assert found.worth_a_retry is again
    assert str(found) == "build: its own words"


def test_lines_come_as_they_are_said(dvc: Path, tmp_path: Path) -> None:
    """The stand-in says its last line only once its second was heard, so it would hang if lines came at the end."""
    dvc.write_text("#!/bin/sh\necho one\necho two >&2\nwhile [ ! -e heard ]; do sleep 0.05; done\necho three\n")
    heard: list[str] = []

    def tell(line: str) -> None:
        heard.append(line)
        if line == "two":
            (tmp_path / "heard").touch()

    stages.run("build", tell)
    assert heard == ["one", "two", "three"]


def test_an_interruption_leaves_no_process_behind(dvc: Path) -> None:
    dvc.write_text("#!/bin/sh\nsh -c 'sleep 300' &\necho $!\nsleep 300\n")
    children: list[psutil.Process] = []

    def interrupt(line: str) -> None:
        children.extend(psutil.Process().children(recursive=True))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("build", interrupt)
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_a_stage_may_clear_up_after_its_dvc_is_gone(dvc: Path, tmp_path: Path) -> None:
    clears = "trap 'sleep 1; touch cleared; exit 75' TERM; echo up; while :; do sleep 0.1; done"
    dvc.write_text(f'#!/bin/sh\nsh -c "{clears}" &\nsleep 300\n')

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run("build", interrupt)
    assert (tmp_path / "cleared").exists()


def test_the_stage_knows_the_flows_process(dvc: Path) -> None:
    dvc.write_text("#!/bin/sh\necho $IMAGE_CAPTIONING_OWNER $DVC_NO_ANALYTICS\n")
    heard: list[str] = []
    stages.run("build", heard.append)
    assert heard == [f"{os.getpid()} 1"]
    assert threading.active_count() < 20
