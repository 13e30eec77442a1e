"""Several processes that train together, and die."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.runtime.atomic_files import sha256_of
from tests.conftest import environment, free_port, run, set_params


@pytest.fixture
def built(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Path:
    """A workspace with a small data set."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("launch", [{"processes": 2}, {"processes": 1, "machines": 2}])
def test_a_process_that_is_killed_is_restarted_with_all_others_bit_for_bit(built: Path, launch: dict[str, int]) -> None:
    """Five kills, at states by chance. Dropout shows whether each process has its own random state again."""
    kills, chance = 5, random.Random(0)
    set_params(built, {f"runtime.launch.{key}": value for key, value in {**launch, "restarts": kills}.items()})
    set_params(built, {"finetune.epochs": 60, "runtime.state_minutes": 0, "finetune.freeze": "none"})
    words = [sys.executable, "-m", "pipeline.finetune"]
    outputs = [Path("models/finetune"), Path("reports/finetune.csv")]
    found = []
    for disturbed in (False, True):
        set_params(built, {"runtime.launch.port": free_port()})
        places = {"env": environment(OMP_NUM_THREADS="1"), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started = [
            subprocess.Popen([*words, "--machine", str(machine)], text=True, **places)  # type: ignore[call-overload]
            for machine in range(launch.get("machines", 1))
        ]
        try:
            for _ in range(kills if disturbed else 0):
                before = {path.name for path in built.glob(".work/training/*/step-*")}
                wait_for_steps(built, before, chance.randrange(1, 6), started[0])
                ranks = [child for one in started for child in psutil.Process(one.pid).children()]
                chance.choice(ranks).kill()
            said = [process.communicate(timeout=500)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * len(started), said
        assert f"(restart {kills} of {kills})" in said[0] or not disturbed
        found.append(sha256_of(*outputs))
    assert found[0] == found[1]


def wait_for_steps(workspace: Path, before: set[str], count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many new states were written."""
    seen: set[str] = set()
    while len(seen) < count:
        assert process.poll() is None, process.communicate()
        seen |= {path.name for path in workspace.glob(".work/training/*/step-*")} - before
        time.sleep(0.01)


@pytest.mark.slow
def test_after_the_last_restart_the_stage_fails_with_the_process(built: Path) -> None:
    set_params(built, {"runtime.launch.processes": 2, "runtime.launch.restarts": 1})
    killer = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    Path("sitecustomize.py").write_text(f"import os\nif 'LOCAL_RANK' in os.environ:\n    {killer}\n")
    done = run(built, sys.executable, "-m", "pipeline.finetune", PYTHONPATH=str(built))
    assert done.returncode != 0
    assert done.stderr.count("was killed by signal 9; all start again") == 1
