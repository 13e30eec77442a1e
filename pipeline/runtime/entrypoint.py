"""The one entry of every stage and command: `main` reads the arguments and params, then runs the work.

It takes the stage's lock, lets no stage in where another flow or `dvc repro` is at work, ends the stage when its
parent dies, and turns exceptions into one line and an exit code. A stage returns its last line: what was made, where
it is, what to do next.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from pipeline.config import paths
from pipeline.config.errors import PipelineError, TemporaryError, is_out_of_memory
from pipeline.config.params import load
from pipeline.runtime import process_identity, workspace_lock

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


# A disk or network folder that fails, or is somebody else's; what else an OSError tells of is a fault of the program.
_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EPERM, errno.EROFS)


class _Terminated(BaseException):
    """SIGTERM came; not an `Exception`, so that no handler on the way takes it for a failure of its own."""


def main(
    name: str,
    work: Callable[..., str],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    lock: Callable[[argparse.Namespace], str | None] | None = None,
    tells: bool = True,
    workspace: bool = True,
) -> None:
    """Run `work` as the command `python -m pipeline.NAME`, and exit.

    Args:
        name: the module's name within `pipeline`.
        work: takes the params (in a workspace) and the command line's arguments, and returns the last line to print.
        arguments: adds the command's own arguments to the parser.
        lock: gives the name of the lock that keeps a second run out; without it, any number may run.
        tells: whether the last line is printed; of several processes of a stage one does.
        workspace: whether it needs a workspace with its `params.yaml`; a command that only reads files does not.
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
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    sys.exit(_run(name, work, args, lock(args) if lock else None, tells, workspace))


def _run(
    name: str,
    work: Callable[..., str],
    args: argparse.Namespace,
    lock: str | None,
    tells: bool,
    workspace: bool,
) -> int:
    try:
        signal.signal(signal.SIGTERM, _terminate)
        _end_with_parent()
        given = (load(), args) if workspace else (args,)
        with _locked(name, lock) if lock else nullcontext():
            line = work(*given)
        if tells:
            print(f"{name}: {line}", flush=True)
        return 0
    except PipelineError as error:
        return _say(name, str(error), error.exit_code)
    except (KeyboardInterrupt, _Terminated) as stop:
        how = "interrupted" if isinstance(stop, KeyboardInterrupt) else "ended by SIGTERM or with its parent"
        return _say(name, f"{how}; the outputs of the last good run are in place; run it again", 75)
    except Exception as error:
        if is_out_of_memory(error):
            return _say(name, "out of memory; lower the batch size in params.yaml or free some, then run it again", 75)
        if _is_disk_full(error):
            where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
            message = f"the disk is full{where}; the outputs of the last good run are in place"
            return _say(name, f"{message}; free some space, then run it again", 75)
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            where = f"{error.filename}: " if error.filename else ""
            return _say(name, f"{where}{error.strerror}; mend that, then run it again", 75)
        raise


# Safetensors and others have exceptions of their own for it, which can be told by their words only.
def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("os error 28", "No space left on device", "disk is full"))


def _say(name: str, message: str, code: int) -> int:
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
            f"another {lock} is running in this workspace (it holds {path}); wait until it has ended, then run it again"
        ) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def ending_itself() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether the stage was asked to end, by SIGTERM or Ctrl-C, within the block.

    The block then ends itself when it has put its work in order; after it the stage ends as it would have at once.
    Ctrl-C after that ends it at once. SIGTERM does not: it comes twice where a whole group of processes is asked to
    end, once to each and once more from those that watch over each other.
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
    # A second signal must not break into the clearing up that the first one started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _end_with_parent() -> None:
    """Have this process end once its parent, or the flow that owns it, is gone; at once where one is already."""
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
