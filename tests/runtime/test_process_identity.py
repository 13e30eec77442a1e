from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import process_identity
from tests.conftest import default_signals


def test_a_process_is_known_by_its_id_and_start_time() -> None:
    me = process_identity.identity()
    assert process_identity.is_alive(me)
    assert process_identity.pid_of(me) == psutil.Process().pid
    pid, _, started = me.partition(":")
    assert not process_identity.is_alive(f"{pid}:1{started}")  # the id was another process's
    assert not process_identity.is_alive("4194304:1.0")


@pytest.mark.parametrize("word", ["", "x:y", ":"])
def test_what_names_no_process_is_not_alive(word: str) -> None:
    assert not process_identity.is_alive(word)


def test_a_process_that_has_ended_is_not_alive_although_nobody_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = process_identity.identity(psutil.Process(process.pid))
        assert process_identity.is_alive(identity)
        process.kill()
        end = time.monotonic() + 10
        while process_identity.is_alive(identity):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert process.returncode is None


def test_the_one_who_started_a_process_is_found_behind_shells() -> None:
    code = "from pipeline.runtime import process_identity; print(*process_identity.starters())"
    inner = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}; true"
    command = f"sh -c {shlex.quote(inner)}; true"
    # As DVC calls bash.
    done = subprocess.run(["bash", "--noprofile", "--norc", "-c", command], capture_output=True, text=True, check=True)
    *shells, last = done.stdout.split()
    assert len(shells) == 2
    assert process_identity.pid_of(last) == psutil.Process().pid


def test_a_process_whose_starter_was_killed_before_it_could_ask_ends(tmp_path: Path) -> None:
    """Its parent is another process by then, which goes on."""
    code = """
import os, time
from pipeline.runtime import process_identity
process_identity.end_with(process_identity.starters(), 1)
assert process_identity.STARTER not in os.environ
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as starter:
        environment = {**os.environ, process_identity.STARTER: process_identity.identity(psutil.Process(starter.pid))}
        starter.kill()
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("nohup", [True, False])
def test_a_process_started_with_nohup_outlives_its_shell(tmp_path: Path, nohup: bool) -> None:
    code = """
import signal, sys, time
from pathlib import Path
from pipeline.runtime import process_identity
process_identity.end_with(process_identity.starters(), 1)
Path(sys.argv[1]).write_text("started")
time.sleep(float(sys.argv[2]))
Path(sys.argv[1]).write_text("finished")
"""
    report = tmp_path / "report"
    sleep = "6" if nohup else "60"  # seconds: it ends long before, unless it outlives its shell
    words = (["nohup"] if nohup else []) + [sys.executable, "-c", code, str(report), sleep]
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, start_new_session=True, preexec_fn=default_signals
    ) as shell:
        assert shell.stdin
        shell.stdin.write(f"{shlex.join(words)} >/dev/null 2>&1 & child=$!\n".encode())
        shell.stdin.write(f"echo $child >{shlex.quote(str(tmp_path / 'pid'))}\n".encode())
        shell.stdin.flush()
        wait_for(lambda: report.exists() and report.read_text() == "started")
        shell.kill()
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert report.read_text() == ("finished" if nohup else "started")


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
