from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import entrypoint, process_identity
from tests.conftest import environment, run

STAGES = ["ingest", "build", "finetune", "compare", "evaluate", "register"]

STAGE = '''
"""A stage that {does}."""
import time, errno
from pathlib import Path
from pipeline.runtime import entrypoint
from pipeline.config.errors import DataError, ConfigError, TemporaryError

def work(params, args):
    Path("started").touch()
    {body}
    return "made it"

if __name__ == "__main__":
    entrypoint.main("example", work, lock=lambda args: "example")
'''


def write_stage(folder: Path, body: str) -> None:
    (folder / "example.py").write_text(STAGE.format(does=body.splitlines()[0], body=body))


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("pass", 0, "example: made it"),
        ("raise DataError('x.csv: row 3:\\n no caption; add it')", 65, "x.csv: row 3: no caption; add it"),
        ("raise ConfigError('bad')", 78, "example: bad"),
        ("raise TemporaryError('later')", 75, "example: later"),
        ("raise OSError(errno.ENOSPC, 'No space', 'big')", 75, "the disk is full at big"),
        ("raise MemoryError", 75, "out of memory"),
        ("raise RuntimeError('[enforce fail] DefaultCPUAllocator: can\\'t allocate memory: 9')", 75, "out of memory"),
        ("raise Exception('Error while serializing: I/O error: No space left (os error 28)')", 75, "the disk is full"),
        ("raise OSError(errno.EIO, 'Input/output error', 'x.zip')", 75, "example: x.zip: Input/output error"),
        ("raise KeyboardInterrupt", 75, "interrupted"),
    ],
)
def test_an_end_is_one_line_and_an_exit_code(workspace: Path, body: str, code: int, words: str) -> None:
    write_stage(workspace, body)
    done = run(workspace, sys.executable, "example.py")
    assert done.returncode == code
    said = (done.stdout + done.stderr).splitlines()
    assert len(said) == 1
    assert words in said[0]


@pytest.mark.parametrize(("given", "used"), [({}, "0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")])
def test_waiting_threads_sleep_unless_the_user_chose_otherwise(
    workspace: Path, given: dict[str, str], used: str
) -> None:
    """OpenMP reads the variable when torch is loaded; GNU's shows how often a thread then looks before it sleeps."""
    write_stage(workspace, "import torch; print(torch.ones(10**6).sum())")
    done = run(workspace, sys.executable, "example.py", OMP_DISPLAY_ENV="verbose", **given)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch is built with another OpenMP")
    assert f"GOMP_SPINCOUNT = '{used}'" in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(workspace: Path) -> None:
    write_stage(workspace, "1 / 0")
    done = run(workspace, sys.executable, "example.py")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_second_run_at_the_same_time_is_refused_in_one_line(workspace: Path) -> None:
    write_stage(workspace, "time.sleep(60)")
    with subprocess.Popen([sys.executable, "example.py"], cwd=workspace, env=environment()) as first:
        wait_for((workspace / "started").exists)
        second = run(workspace, sys.executable, "example.py")
        first.terminate()
    assert second.returncode == 75
    assert second.stderr.count("\n") == 1
    assert "another example is running in this workspace" in second.stderr
    assert first.returncode == 75


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_75(workspace: Path, how: signal.Signals) -> None:
    write_stage(workspace, "time.sleep(60)")
    # Where these tests run in the background of a script, Ctrl-C is ignored, and children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "example.py"], cwd=workspace, env=environment(), stderr=subprocess.PIPE, text=True
    ) as asked:
        wait_for((workspace / "started").exists)
        signal.signal(signal.SIGINT, before)
        asked.send_signal(how)
        _, said = asked.communicate(timeout=20)
    assert asked.returncode == 75
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("then", "ended"), [(signal.SIGTERM, "wrote its state"), (signal.SIGINT, "interrupted in the midst of it")]
)
def test_who_ends_itself_is_left_to_it_but_by_ctrl_c(then: signal.Signals, ended: str) -> None:
    """Where a group of processes is asked to end, SIGTERM comes from more than one side."""
    said = ""
    before = signal.signal(signal.SIGTERM, entrypoint._terminate)
    try:
        with pytest.raises((entrypoint._Terminated, KeyboardInterrupt)), entrypoint.ending_itself() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
            try:
                os.kill(os.getpid(), then)
                said = "wrote its state"
            except KeyboardInterrupt:
                said = "interrupted in the midst of it"
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == ended


@pytest.mark.parametrize("between", ["{python} example.py; true", "sh -c '{python} example.py; true'; true"])
def test_it_ends_itself_when_its_parent_is_killed(workspace: Path, between: str) -> None:
    """Also when a shell stands between it and the one that was killed, as DVC's does."""
    write_stage(workspace, "time.sleep(60)")
    command = between.format(python=f'"{sys.executable}"')
    # The killed one is a Python that, like DVC, starts a shell and waits.
    starter = f"import subprocess; subprocess.run({command!r}, shell=True)"
    with subprocess.Popen([sys.executable, "-c", starter], cwd=workspace, env=environment()) as parent:
        wait_for((workspace / "started").exists)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert any("example.py" in " ".join(child.cmdline()) for child in family)
        parent.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in family))


def test_it_does_not_start_when_the_flow_that_owns_it_is_gone_already(workspace: Path) -> None:
    write_stage(workspace, "pass")
    done = run(workspace, sys.executable, "example.py", IMAGE_CAPTIONING_OWNER="4194000:1.0")
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1


def test_it_ends_when_the_flow_that_owns_it_is_killed(workspace: Path) -> None:
    write_stage(workspace, "time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as owner:
        identity = process_identity.identity(psutil.Process(owner.pid))
        stage = subprocess.Popen(
            [sys.executable, "example.py"],
            cwd=workspace,
            env=environment(IMAGE_CAPTIONING_OWNER=identity),
        )
        wait_for((workspace / "started").exists)
        owner.kill()
    assert stage.wait(timeout=20) == 75


COMMANDS = ["", "caption", "score", "promote", "trained-on", "ui", "status", "train", "retrain", "serve"]


@pytest.mark.parametrize(
    ("module", "words", "usage"),
    [
        *(
            (f"pipeline.{name}", ["--help"], f"python -m pipeline.{name}")
            for name in (*STAGES, "tracking.model_status", "tracking.retention")
        ),
        *(("pipeline.cli", [*command.split(), "--help"], f"image-captioning {command}") for command in COMMANDS),
    ],
)
def test_help_imports_nothing_heavy(module: str, words: list[str], usage: str) -> None:
    heavy = {"torch", "transformers", "mlflow", "pandas", "prefect", "dvc"}
    if module == "pipeline.cli":
        heavy |= {"numpy", "PIL", "ruamel", "psutil", "rich"}
    probe = (
        "import runpy, sys\n"
        f"sys.argv = {['x', *words]!r}\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print({heavy!r} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert usage in done.stdout
