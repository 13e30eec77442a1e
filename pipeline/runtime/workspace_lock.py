"""Lock the workspace for one flow or one `dvc repro`, from its first stage to its last.

A stage's own lock (`stage.main`) prevents a second run of that stage while it runs; a claim also holds between stages.
A claim names a process and expires when that process ends, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil
from filelock import FileLock

from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json, write_json

OWNER = "IMAGE_CAPTIONING_OWNER"  # the flow that a command belongs to, as `process_identity.identity`
_DVC_STAGE = "DVC_STAGE"  # DVC sets this for the commands that it runs
_CLAIM = paths.WORK / "locks" / "workspace.json"


@dataclass(frozen=True)
class Claim:
    """The holder of the workspace lock.

    Attributes:
        who: a human-readable name, such as `dvc repro`.
        process: the process in the format of `process_identity.identity`.
        gives_back: whether the holder releases the workspace when it succeeds; DVC does not, as it knows no claims.
    """

    who: str
    process: str
    gives_back: bool


def take(who: str, process: str, gives_back: bool = True) -> Claim | None:
    """Claim the workspace for a process, or renew its claim.

    Returns:
        The previous claim if its process died before it released the workspace, else None. Claims whose process never
        releases (`gives_back` is False) do not count.

    Raises:
        TemporaryError: another running process holds the workspace.
    """
    with _locked():
        before = _read()
        if before and before.process != process:
            _refuse_if_alive(before)
        place = _CLAIM.with_suffix(".new")
        write_json(place, asdict(Claim(who, process, gives_back)))
        place.replace(_CLAIM)
    return before if before and before.process != process and before.gives_back else None


def give_back(process: str) -> None:
    """Release the workspace if this process holds it."""
    with _locked():
        claim = _read()
        if claim and claim.process == process:
            _CLAIM.unlink()


def enter(stage: str) -> None:
    """Let a stage into the workspace if its flow or `dvc repro` holds the workspace or can claim it now.

    A stage that was started by hand claims nothing.

    Raises:
        TemporaryError: another process holds the workspace.
    """
    if owner := os.environ.get(OWNER):
        with _locked():
            claim = _read()
            if claim and claim.process != owner:
                _refuse_if_alive(claim)
    elif os.environ.get(_DVC_STAGE, "").partition("@")[0] == stage:
        take("`dvc repro`", _dvc(), gives_back=False)
    elif claim := _read():
        _refuse_if_alive(claim)


def holder() -> Claim | None:
    """Return the claim of the running process that holds the workspace, or None. This call does not block."""
    claim = _read()
    return claim if claim and process_identity.is_alive(claim.process) else None


def _dvc() -> str:
    """Return the DVC process that started this stage.

    If DVC was killed in the meantime, its child now belongs to init or a similar process.

    Raises:
        TemporaryError: DVC is gone.
    """
    try:
        starter = process_identity.starters()[-1]
        if any(
            word in " ".join(psutil.Process(process_identity.pid_of(starter)).cmdline()) for word in ("dvc", "python")
        ):
            return starter
    except (psutil.Error, IndexError):
        pass
    raise TemporaryError("the `dvc repro` that started this is gone; run it again")


def _read() -> Claim | None:
    try:
        return Claim(**read_json(_CLAIM))
    except (FileNotFoundError, ValueError, TypeError):  # no claim, or one truncated by a full disk
        return None


def _refuse_if_alive(claim: Claim) -> None:
    if process_identity.is_alive(claim.process):
        raise TemporaryError(
            f"{claim.who} (process {process_identity.pid_of(claim.process)}) is running in this workspace; wait for"
            " it to finish, then run this again"
        )


@contextmanager
def _locked() -> Iterator[None]:
    _CLAIM.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_CLAIM.with_suffix(".lock")):
        yield
