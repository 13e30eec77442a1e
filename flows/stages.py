"""One stage through `dvc repro`: its output line by line, its exit code, and no process left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STAGES = ("ingest", "build", "finetune", "evaluate", "register")
TEMPORARY = 75
_OWNER = "IMAGE_CAPTIONING_OWNER"  # `pipeline.stage` ends a stage when the process of this id is gone
# DVC itself exits with 255 whatever happened; the stage's own exit code stands in its last words.
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")
_TERMINATE_SECONDS = 65  # a training writes a state first


class StageError(Exception):
    """A stage failed.

    Attributes:
        code: the stage's exit code; negative for the signal that killed it; `TEMPORARY` where another DVC was
            at work in the workspace.
    """

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code

    @property
    def worth_a_retry(self) -> bool:
        """Whether the same run may well succeed later: killed, out of memory, or temporary by its own word."""
        return self.code == TEMPORARY or self.code < 0 or self.code in (128 + signal.SIGKILL, 128 + signal.SIGTERM)


def run(stage: str, tell: Callable[[str], None]) -> None:
    """Bring a stage, and whatever it needs, up to date in the current folder.

    Args:
        stage: its name in `dvc.yaml`.
        tell: is given each line of output as it comes.

    Raises:
        StageError: with the stage's exit code and own words.
    """
    dvc = Path(sys.executable).with_name("dvc")
    path = f"{dvc.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(dvc), "repro", stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **quiet, "PATH": path, _OWNER: str(os.getpid())},
        start_new_session=True,
    )
    own_words, code, said = "", None, ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if not (line := line.rstrip()):
                continue
            tell(line)
            said = line
            if line.startswith(f"{stage}: "):
                own_words = line
            if found := _EXITED.search(line):
                code = int(found[1])
            elif _BUSY.search(line):
                code = TEMPORARY
        process.wait()
    except BaseException:  # cancelled or timed out as well: nothing may go on behind the flow's back
        _end(process)
        raise
    if process.returncode:
        raise StageError(code if code is not None else process.returncode, own_words or said or f"{stage}: failed")


def _end(process: subprocess.Popen[str]) -> None:
    """End the whole process group: first politely, and the rest of it after a while."""
    deadline = time.monotonic() + _TERMINATE_SECONDS
    try:
        os.killpg(process.pid, signal.SIGTERM)
        # DVC may be gone at once, while its stage still clears up; the group is there until its last member ends.
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
