"""What a flow does around its work: the workspace to itself, failure in one line, an exit code for the shell."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Failed

from flows.exec.stages import TEMPORARY, StageError
from pipeline.config.errors import PipelineError, TemporaryError
from pipeline.runtime import process_identity, workspace_lock

_NO_SERVER = "Failed to reach API"  # begins what Prefect says then
_POLL_SECONDS = 2.0
_GRACE_SECONDS = 75.0  # for a training to write a state
_DRAIN_SECONDS = 5.0
_REPORT_SECONDS = 10.0  # to tell Prefect, whose server may be gone too


@contextmanager
def claimed(who: str, wait_minutes: float, tell: Callable[[str], None]) -> Iterator[None]:
    """Have the workspace in the current folder; waits for whoever has it.

    Raises:
        TemporaryError: it had not been given back after so many minutes.
    """
    me = process_identity.identity()
    deadline = time.monotonic() + 60 * wait_minutes
    told = False
    while True:
        try:
            dead = workspace_lock.take(who, me)
            break
        except TemporaryError as busy:
            if time.monotonic() >= deadline:
                raise
            if not told:
                tell(f"waits: {busy}")
                told = True
            time.sleep(_POLL_SECONDS)
    if dead:
        tell(
            f"takes over the workspace from {dead.who} (process {process_identity.pid_of(dead.process)}), which"
            " had died"
        )
    try:
        yield
    finally:
        workspace_lock.give_back(me)


def end_with_the_scheduler() -> None:
    """Have this flow end when the scheduler or worker that started it is gone; a person's has none."""
    others = [os.environ[workspace_lock.OWNER]] if workspace_lock.OWNER in os.environ else []
    if not others and "PREFECT__FLOW_RUN_ID" in os.environ:
        others = process_identity.starters()
    if others:
        process_identity.end_with(others, _GRACE_SECONDS, _REPORT_SECONDS)


def in_words(work: Callable[[], State | None]) -> State | None:
    """Run a flow's work; gives the state of its end, where that is a failure with one line of words as its message."""
    end_with_the_scheduler()
    try:
        return work()
    except (StageError, PipelineError) as failure:
        return Failed(message=str(failure), data=failure)
    except OSError as error:  # a full disk, a file that vanished
        temporary = TemporaryError(f"{error}; mend that, then run again")
        return Failed(message=str(temporary), data=temporary)
    except BaseException:
        # Asked to end: Prefect tells its server how a task ended in the background, and does not wait for that.
        EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
        raise


def main(flow: Flow[[], State | None], done: str) -> int:
    """Run a flow for a person; gives the exit code, which is that of the stage that failed.

    Args:
        flow: that ends in a state with a message.
        done: the last line where that has none.
    """
    # There is nothing to set but params.yaml; who asks for help, or mistypes, starts nothing.
    argparse.ArgumentParser(prog=f"python -m flows.{flow.name}", description=flow.description).parse_args()
    try:
        state = flow(return_state=True)
    except KeyboardInterrupt:
        print(f"flows.{flow.name}: interrupted; run it again, it goes on where it was", file=sys.stderr)
        return TEMPORARY
    except (PrefectHTTPStatusError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(_NO_SERVER):
            raise
        why = str(error).splitlines()[0].rstrip("/")
        print(f"flows.{flow.name}: {why}; start that server, or unset PREFECT_API_URL to do without", file=sys.stderr)
        return TEMPORARY
    code, words = 0, state.message or done
    if not state.is_completed():
        failure = state.result(raise_on_failure=False)
        code = _exit_code(failure)
    # Prefect tells of its server's end after this; the last line is to be ours.
    logging.getLogger("prefect").setLevel(logging.WARNING)
    print(f"flows.{flow.name}: {words}", file=sys.stderr if code else sys.stdout)
    return code


def _exit_code(failure: object) -> int:
    if isinstance(failure, StageError):
        return failure.code if failure.code > 0 else 128 - failure.code
    return failure.exit_code if isinstance(failure, PipelineError) else 1
