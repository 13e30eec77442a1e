"""The one entry point of every stage and command: it reads params, runs the work, and turns exceptions into exit codes.

It takes the stage's lock, refuses to start a stage while another flow or `dvc repro` uses the workspace, ends the stage
when its parent dies, and prints a failure as one line. The work returns its last line: what was made, where it is, what
to do next.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from pipeline.config import paths
from pipeline.config.errors import PipelineError, TemporaryError, is_disk_full, is_out_of_memory
from pipeline.config.params import Params, load
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.atomic_files import write_json
from pipeline.runtime.openmp import wait_passively

RESULT = "IMAGE_CAPTIONING_RESULT"  # environment: the file to which a command writes its result as JSON
_GRACE_SECONDS = 60.0  # to write the state of a training

# A default run sends nothing to anybody.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


# A disk or network folder that fails or denies access. Any other OSError is a bug and keeps its traceback.
_DISK_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EPERM, errno.EROFS)


class _Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`, so that no handler on the way mistakes it for a failure of its own."""


class Done(NamedTuple):
    """What a piece of work returns if a flow needs more than its last line.

    Attributes:
        line: the last line to print.
        result: JSON; the flow that started the command gets it back (see `RESULT`).
    """

    line: str
    result: Any


def main(
    name: str,
    work: Callable[[Params, argparse.Namespace], str | Done],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    lock: Callable[[argparse.Namespace], str | None] | None = None,
    prints: bool = True,
) -> NoReturn:
    """Run `work` as the command `python -m MODULE`, and exit.

    Args:
        name: stands before every line that is printed.
        work: takes the params and the command line's arguments, and returns the last line to print.
        arguments: adds the command's own arguments to the parser.
        lock: returns the name of the lock that keeps a second run out; None if any number may run.
        prints: whether the last line is printed; one of several processes of a stage does.
    """
    module = sys.modules["__main__"]
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.__spec__.name if module.__spec__ else f'pipeline.{name}'}",
        description=(module.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if arguments:
        arguments(parser)
    args = parser.parse_args()
    sys.exit(execute(name, lambda params: work(params, args), lock=lock(args) if lock else None, prints=prints))


def execute(
    name: str,
    work: Callable[..., str | Done],
    lock: str | None = None,
    prints: bool = True,
    needs_params: bool = True,
) -> int:
    """Run `work`, print its last line or its failure, and return the exit code.

    Args:
        name: stands before every line that is printed.
        work: takes the params (nothing if `needs_params` is false), and returns the last line to print.
        lock: the name of the lock that keeps a second run out; None if any number may run.
        prints: whether the last line is printed, if it is not empty.
        needs_params: whether it runs in a workspace with a `params.yaml`.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # on Apple's GPUs the CPU does what they can't
    wait_passively()
    result = os.environ.pop(RESULT, None)  # what this starts must not write to it
    try:
        signal.signal(signal.SIGTERM, _terminate)
        _end_with_parent()
        given = (load(),) if needs_params else ()
        with _locked(name, lock) if lock else nullcontext():
            done = work(*given)
        if isinstance(done, str):
            done = Done(done, None)
        if result:
            write_json(Path(result), done.result)
        if prints and done.line:
            print(f"{name}: {done.line}", flush=True)
        return 0
    except PipelineError as error:
        return _fail(name, str(error), error.exit_code)
    except (KeyboardInterrupt, _Terminated) as stop:
        how = "interrupted" if isinstance(stop, KeyboardInterrupt) else "ended by SIGTERM or because its parent ended"
        return _fail(name, f"{how}; the outputs of the last good run are unchanged; run it again", 75)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(name, "out of memory; lower the batch size in params.yaml or free memory, then run again", 75)
        if is_disk_full(error):
            where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
            message = f"the disk is full{where}; the outputs of the last good run are unchanged"
            return _fail(name, f"{message}; free some space, then run again", 75)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(name, f"{where}{error.strerror}; fix that, then run again", 75)
        raise


def _fail(name: str, message: str, code: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


@contextmanager
def _locked(name: str, lock: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    workspace_lock.enter(name)
    path = paths.WORK / "locks" / f"{lock}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise TemporaryError(
            f"another {lock} is running in this workspace (it holds {path}); wait for it to finish, then run again"
        ) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def ending_itself() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C has arrived within the block.

    The block finishes its work in order and then leaves; the stage ends after it. A second Ctrl-C ends the stage at
    once. A second SIGTERM does not: it arrives twice when a whole process group is terminated, once for each process
    and once more from the processes that watch each other.
    """
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if asked and signum == signal.SIGINT:
            _raise(signum)
        asked.append(signum)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        _raise(asked[0])


def _raise(signum: int) -> None:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    _terminate(signum, None)


def _terminate(signum: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the cleanup that the first one started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _end_with_parent() -> None:
    """End this process when its parent, or the flow that owns it, ends; at once if it has ended already."""
    import psutil

    try:
        watched = process_identity.starters()
    except psutil.NoSuchProcess:
        watched = [""]
    if owner := os.environ.get(workspace_lock.OWNER):
        watched.append(owner)
    if not all(map(process_identity.is_alive, watched)):
        os.kill(os.getpid(), signal.SIGTERM)
    process_identity.end_with(watched, _GRACE_SECONDS)
