"""Who works in this workspace: one flow, or one `dvc repro`, from its first stage to its last.

A stage's own lock (`stage.main`) keeps a second run of it out while it runs; a claim holds between the stages too. It
names a process and ends with it, so a crash leaves nothing to clear up.
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

OWNER = "IMAGE_CAPTIONING_OWNER"  # the flow that a command belongs to, as `process_identity.identity` names it
_DVC_STAGE = "DVC_STAGE"  # DVC sets it for the commands that it runs
_CLAIM = paths.WORK / "locks" / "workspace.json"


@dataclass(frozen=True)
class Claim:
    """Who has the workspace.

    Attributes:
        who: a name for people, like `dvc repro`.
        process: as `process_identity.identity` names it.
        gives_back: whether it gives the workspace back when it ends well; DVC does not know of claims.
    """

    who: str
    process: str
    gives_back: bool


def take(who: str, process: str, gives_back: bool = True) -> Claim | None:
    """Take the workspace for a process, or keep it; gives the claim of one that died with it, if one did.

    Raises:
        TemporaryError: another process has it.
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
    """Give the workspace back, if the process has it."""
    with _locked():
        claim = _read()
        if claim and claim.process == process:
            _CLAIM.unlink()


def enter(stage: str) -> None:
    """Let a stage into the workspace: one of the flow or `dvc repro` that has it, or takes it now.

    A stage that was started by hand takes nothing.

    Raises:
        TemporaryError: another process has the workspace.
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
    """Return the claim of the running process that has the workspace, if there is one. Waits for nothing."""
    claim = _read()
    return claim if claim and process_identity.is_alive(claim.process) else None


def _dvc() -> str:
    """The DVC that started this stage. Where it was killed meanwhile, its child now is init's or the like."""
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
    except (FileNotFoundError, ValueError, TypeError):  # none, or one that a full disk cut off
        return None


def _refuse_if_alive(claim: Claim) -> None:
    if process_identity.is_alive(claim.process):
        raise TemporaryError(
            f"{claim.who} (process {process_identity.pid_of(claim.process)}) is at work in this workspace; wait until"
            " it has ended, then run it again"
        )


@contextmanager
def _locked() -> Iterator[None]:
    _CLAIM.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_CLAIM.with_suffix(".lock")):
        yield
