from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from flows.exec import stages
from pipeline.runtime import process_identity


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
        stages.repro("build", lambda line: None, 1)
    return caught.value


@pytest.mark.parametrize(
    ("said", "code", "again"),
    [
        ("failed to run: python -m pipeline.build, exited with 65", 65, False),
        ("failed to run: python -m pipeline.build, exited with 78", 78, False),
        ("failed to run: python -m pipeline.build, exited with 1", 1, False),
        ("failed to run: python -m pipeline.build, exited with 75", 75, True),
        ("failed to run: python -m pipeline.build, exited with 137", 137, True),
        ("'data/x' is busy, it is being blocked by:", 75, True),
        ("Unable to acquire lock. Most likely another DVC process is running", 75, True),
    ],
)
def test_the_stages_own_exit_code_decides_whether_it_is_tried_again(
    dvc: Path, said: str, code: int, again: bool
) -> None:
    found = failure(dvc, f'echo "build: its own words"; echo "build:  40% 2 of 5 pictures"; echo "ERROR: {said}"')
    assert found.code == code
    assert found.worth_a_retry is again
    assert str(found) == "build: its own words"


def test_of_a_killed_stage_what_it_said_last_is_not_taken_for_the_reason(dvc: Path) -> None:
    said = "failed to run: python -m pipeline.build, exited with -9"
    found = failure(dvc, f'echo "build: all is well"; echo "{said}"')
    assert (found.code, found.worth_a_retry) == (-9, True)
    assert str(found).startswith("build: killed by SIGKILL; what it said last: ")


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("Stage 'build' didn't change, skipping", "nothing"),
        ("Running stage 'build':", "ran"),
        ("Stage 'build' is cached - skipping run, checking out outputs", "restored"),
    ],
)
def test_it_is_told_whether_there_was_anything_to_do(dvc: Path, said: str, outcome: str) -> None:
    dvc.write_text(f'#!/bin/sh\necho "{said}"\n')
    assert stages.repro("build", lambda line: None, 1) == outcome


def test_the_stage_knows_the_flows_process_and_dvcs_hints_to_people_are_left_out(dvc: Path) -> None:
    dvc.write_text("#!/bin/sh\necho $IMAGE_CAPTIONING_OWNER $DVC_NO_ANALYTICS $@\nprintf '\\tgit add dvc.lock\\n'\n")
    heard: list[str] = []
    stages.repro("build", heard.append, 1)
    assert heard == [f"{process_identity.identity()} 1 repro --single-item build"]


def test_a_commands_failure_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import sys; print('mine: bad'); sys.exit(int(sys.argv[1]))")
    with pytest.raises(stages.StageError, match="mine: bad") as caught:
        stages.command("mine", "mine", "78", log=lambda line: None, minutes=1)
    assert caught.value.code == 78
    assert stages.command("mine", "mine", "0", log=lambda line: None, minutes=1) is None


def test_the_result_of_a_command_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = "import os, pathlib; pathlib.Path(os.environ['IMAGE_CAPTIONING_RESULT']).write_text('{\"stale\": []}')"
    (tmp_path / "mine.py").write_text(body)
    assert stages.command("mine", "mine", log=lambda line: None, minutes=1) == {"stale": []}


def test_a_command_of_the_flows_own_comes_from_where_its_code_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows" / "steps").mkdir(parents=True)
    (tmp_path / "flows/steps/commit_raw.py").write_text("raise SystemExit('the wrong one')")
    with pytest.raises(stages.StageError, match=r"commit_raw: params\.yaml: not found"):
        stages.command("commit_raw", "flows.steps.commit_raw", log=lambda line: None, minutes=1, ours=True)
