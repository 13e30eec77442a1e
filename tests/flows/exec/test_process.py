from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flows.exec import process


def shell(script: str, log=lambda line: None, seconds: float = 60, **environment: str) -> int:
    return process.run(["/bin/sh", "-c", script], log, environment, seconds)


def test_lines_come_as_they_are_said(tmp_path: Path) -> None:
    """The command says its last line only once its second was heard, so it would hang if lines came at the end."""
    heard: list[str] = []

    def log(line: str) -> None:
        heard.append(line)
        if line == "two":
            (tmp_path / "heard").touch()

    script = f"echo one; echo two >&2; while [ ! -e '{tmp_path}/heard' ]; do sleep 0.05; done; echo three $MORE"
    assert shell(script, log, MORE="four") == 0
    assert heard == ["one", "two", "three four"]


@pytest.mark.parametrize(("script", "code"), [("exit 65", 65), ("kill -9 $$", -9)])
def test_the_exit_code_is_given(script: str, code: int) -> None:
    assert shell(script) == code


def test_an_interruption_leaves_no_process_behind() -> None:
    others = set(psutil.Process().children(recursive=True))  # a server of other tests, say
    children: list[psutil.Process] = []

    def interrupt(line: str) -> None:
        children.extend(set(psutil.Process().children(recursive=True)) - others)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell("sh -c 'sleep 300' & echo $!; sleep 300", interrupt)
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_what_takes_too_long_is_ended_although_it_is_silent(tmp_path: Path) -> None:
    with pytest.raises(process.TooLongError):
        shell(f"sh -c 'trap \"touch {tmp_path}/cleared; exit 1\" TERM; while :; do sleep 0.1; done'", seconds=0.5)
    assert (tmp_path / "cleared").exists()
    assert "300" not in " ".join(" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True))
    assert threading.active_count() < 20


def test_a_command_may_clear_up_after_the_one_that_started_it_is_gone(tmp_path: Path) -> None:
    clears = f"trap 'sleep 1; touch {tmp_path}/cleared; exit 75' TERM; echo up; while :; do sleep 0.1; done"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell(f'sh -c "{clears}" & sleep 300', interrupt)
    assert (tmp_path / "cleared").exists()


def test_it_is_no_member_of_our_process_group() -> None:
    heard: list[str] = []
    process.run([sys.executable, "-c", "import os; print(os.getpgrp(), os.getpid())"], heard.append, {}, 60)
    group, own = heard[0].split()
    assert group == own != str(os.getpgrp())
