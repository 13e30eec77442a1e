"""What wraps a flow's work: the lock on the workspace, one-line failure messages, and the exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect import Flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from flows.exec import server
from flows.exec.stages import TEMPORARY, StageError
from pipeline.config.errors import PipelineError, TemporaryError
from pipeline.runtime import process_identity, workspace_lock

_POLL_SECONDS = 2.0
_GRACE_SECONDS = 75.0  # for a training to save its state
_DRAIN_SECONDS = 5.0
_REPORT_SECONDS = 10.0  # to report to Prefect, whose server may be gone too


@contextmanager
def workspace_locked(who: str, wait_minutes: float, log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock on the workspace in the current folder; wait while another process holds it.

    Raises:
        TemporaryError: the lock was not released within `wait_minutes`.
    """
    me = process_identity.identity()
    deadline = time.monotonic() + 60 * wait_minutes
    logged = False
    while True:
        try:
            dead = workspace_lock.take(who, me)
            break
        except TemporaryError as busy:
            if time.monotonic() >= deadline:
                raise
            if not logged:
                log(f"waiting: {busy}")
                logged = True
            time.sleep(_POLL_SECONDS)
    if dead:
        log(
            f"takes over the workspace from {dead.who} (process {process_identity.pid_of(dead.process)}), which"
            " had died"
        )
    try:
        yield
    finally:
        workspace_lock.give_back(me)


def end_with_the_scheduler() -> None:
    """End this flow when the scheduler or worker that started it is gone. A flow started by hand has neither."""
    others = [os.environ[workspace_lock.OWNER]] if workspace_lock.OWNER in os.environ else []
    if not others and "PREFECT__FLOW_RUN_ID" in os.environ:
        others = process_identity.starters()
    if others:
        process_identity.end_with(others, _GRACE_SECONDS, _REPORT_SECONDS)


def add_to_name(cause: str) -> None:
    """Add what changed to the flow run's name in Prefect, like `eager-otter (data, params)`."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(runtime.flow_run.id), name=f"{runtime.flow_run.name} ({cause})")
    except Exception as error:  # only a name: it must not stop the work
        get_run_logger().warning("the run is not renamed: %s", error)


def with_failures(work: Callable[[], State | None]) -> State | None:
    """Run a flow's work. Return its final state; expected failures become a failed state with a one-line message."""
    end_with_the_scheduler()
    try:
        return work()
    except (StageError, PipelineError) as failure:
        return Failed(message=str(failure), data=failure)
    except OSError as error:  # a full disk, a file that vanished
        temporary = TemporaryError(f"{error}; fix that, then run again")
        return Failed(message=str(temporary), data=temporary)
    except BaseException:
        # Terminated or cancelled: Prefect reports how a task ended in the background and would exit without waiting.
        EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
        raise


def main(flow: Flow[[], State | None], done: str) -> int:
    """Run a flow on the command line. Return the exit code: 0, or that of the stage that failed.

    Args:
        flow: the flow; the message of its final state is the last line to print.
        done: the last line if the state has no message.
    """
    # All settings are in params.yaml. Parse anyway, so that `--help` or a typo does not start the flow.
    argparse.ArgumentParser(prog=f"image-captioning {flow.name}", description=flow.description).parse_args()
    try:
        state = flow(return_state=True)
    except KeyboardInterrupt:
        print(f"flows.{flow.name}: interrupted; run it again, it continues from there", file=sys.stderr)
        return TEMPORARY
    except Exception as error:
        if (why := server.failure(error)) is None:
            raise
        logging.getLogger("prefect").setLevel(logging.WARNING)  # it logs the end of its server after our line
        fix = "start that server, or unset PREFECT_API_URL to do without" if PREFECT_API_URL.value() else "run it again"
        print(f"flows.{flow.name}: {why}; {fix}", file=sys.stderr)
        return TEMPORARY
    code, words = 0, state.message or done
    if not state.is_completed():
        failure = state.result(raise_on_failure=False)
        code = _exit_code(failure)
    # Prefect logs the end of its server after this; silence it so that our line is the last.
    logging.getLogger("prefect").setLevel(logging.WARNING)
    print(f"flows.{flow.name}: {words}", file=sys.stderr if code else sys.stdout)
    return code


def _exit_code(failure: object) -> int:
    if isinstance(failure, StageError):
        return failure.code if failure.code > 0 else 128 - failure.code
    return failure.exit_code if isinstance(failure, PipelineError) else 1
