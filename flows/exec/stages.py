"""Run one stage with `dvc repro`, or another command; stream its output and report failures with its own message."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from flows.exec import process, progress_log
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.entrypoint import RESULT
from pipeline.runtime.progress import READ_ALONG
from pipeline.runtime.workspace_lock import OWNER

STAGES = ("ingest", "build", "finetune", "compare", "evaluate", "register")
TEMPORARY = 75
DATA = 65
_KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
_ROOT = Path(__file__).parents[2]
# DVC exits with 255 on any failure; the stage's own exit code is in DVC's last message.
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_RAN = re.compile(r"Running stage '")
_RESTORED = re.compile(r"is cached - skipping run, checking out outputs")
_HINT = re.compile(r"^(To track the changes with git|\tgit add |To enable auto staging|\tdvc config |Use `dvc push`)")
_PROGRESS_SECONDS = 2

Log = Callable[[str], None]
# What DVC did. It restores the outputs of an earlier run with the same inputs from its cache.
Outcome = Literal["nothing", "ran", "restored"]


class StageError(Exception):
    """A stage failed.

    Attributes:
        code: the stage's exit code; negative if a signal killed it; `TEMPORARY` if another DVC process was using the
            workspace.
    """

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code

    @property
    def worth_a_retry(self) -> bool:
        """Whether a retry may succeed: the stage was killed, ran out of memory or reported a temporary failure."""
        return self.code == TEMPORARY or self.code < 0 or self.code in _KILLED


class StageTimeoutError(StageError, TimeoutError):
    """A stage exceeded its timeout. It is not retried, because it had its full time."""

    @property
    def worth_a_retry(self) -> bool:
        """Never."""
        return False


def repro(stage: str, log: Log, minutes: float) -> Outcome:
    """Bring one stage up to date in the current folder, as `dvc repro` does after the stages before it.

    Return what DVC did.

    Args:
        stage: the stage's name in `dvc.yaml`.
        log: receives each line of output as it is written.
        minutes: the timeout.

    Raises:
        StageError: the stage failed; has its exit code and message.
    """
    outcome: Outcome = "nothing"

    def receive(line: str) -> None:
        nonlocal outcome
        if _RAN.match(line):
            outcome = "ran"
        elif _RESTORED.search(line) and outcome == "nothing":
            outcome = "restored"
        log(line)

    # `--single-item`: data that arrived in data/raw after `commit_raw` are left to the next run.
    dvc = Path(sys.executable).with_name("dvc")
    _run(stage, stage, [str(dvc), "repro", "--single-item", stage], receive, minutes, {})
    return outcome


def command(
    name: str,
    module: str,
    *arguments: str,
    log: Log,
    minutes: float,
    ours: bool = False,
    prefix: str | None = None,
) -> Any:
    """Run `python -m MODULE` in the current folder and return its result (`entrypoint.Done`), None if it has none.

    Args:
        name: the step's name, as in `flow.timeout_minutes`.
        module: the module to run; it uses `pipeline.runtime.entrypoint`.
        arguments: the module's command-line arguments.
        log: receives each line of output.
        minutes: the timeout.
        ours: import the module from this flow's code instead of the current folder.
        prefix: starts the lines of the command's own messages, before `: `. Default: the module's last name.

    Raises:
        StageError: the command failed; has its exit code and message.
    """
    words = [sys.executable, *(["-P"] if ours else []), "-m", module, *arguments]
    path = f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        environment = {RESULT: str(result), **({"PYTHONPATH": path} if ours else {})}
        _run(name, prefix or module.rpartition(".")[2], words, log, minutes, environment)
        return read_json(result) if result.is_file() else None


def _run(name: str, speaker: str, words: list[str], log: Log, minutes: float, environment: Mapping[str, str]) -> None:
    own_words, said = "", ""
    code: int | None = None

    def receive(line: str) -> None:
        nonlocal own_words, code, said
        if _HINT.match(line):  # DVC's hints for interactive use
            return
        log(line)
        said = line
        if line.startswith(f"{speaker}: ") and progress_log.percent(line) is None:
            own_words = line
        if found := _EXITED.search(line):
            code = int(found[1])
        elif _BUSY.search(line):
            code = TEMPORARY

    common = {
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        OWNER: process_identity.identity(),
        READ_ALONG: str(_PROGRESS_SECONDS),
    }
    try:
        returned = process.run(words, receive, {**common, **environment}, 60 * minutes)
    except process.TooLongError:
        raise StageTimeoutError(
            TEMPORARY, f"{name}: took longer than {minutes:g} minutes; raise flow.timeout_minutes in params.yaml"
        ) from None
    if returned:
        code = returned if code is None else code
        what = own_words or said or f"{name}: failed"
        if code < 0:  # killed: the last line of output is not the reason
            what = f"{name}: killed by {signal.Signals(-code).name}; what it said last: {said or 'nothing'}"
        raise StageError(code, what)
