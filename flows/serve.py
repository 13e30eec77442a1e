"""Retrain on a schedule and on events, on this machine, one run at a time.

    image-captioning serve --cron "0 3 * * 1"

This command starts a local Prefect server (SQLite, on 127.0.0.1), unless one runs at --port, or PREFECT_API_URL or the
Prefect profile names one. Several workspaces may use one server: each has its own deployments, retrain/NAME and
train/NAME. When you stop the command, it ends its runs and Prefect shows them as cancelled. `prefect.yaml` defines the
same deployments for a work pool. With `retrain.on_drift` there is a third one, watch/NAME: it looks for drift on
Mondays at 00:30 UTC, and a new alarm starts a retraining.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.exec.server import Server, connected, failure
from flows.workspace import clone
from pipeline.config import paths
from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.config.params import load
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import remove, swapped_in, write_json
from pipeline.runtime.single_instance import single_instance
from pipeline.runtime.workspace_lock import OWNER

if TYPE_CHECKING:
    from prefect.events import DeploymentTriggerTypes, TriggerTypes
    from prefect.runner import Runner
    from prefect.server.schemas.schedules import CronSchedule

TAG = "image-captioning"
CHANGED = "image-captioning.data.changed"  # the event that starts a retraining
_DRIFT_CRON = "30 0 * * 1"  # UTC, like the weeks that are compared: the last one is over
_LOCK = paths.WORK / "locks" / "scheduler.lock"
_END_SECONDS = 120.0
_AGAIN_SECONDS = 5.0
_INTERRUPTED = 130  # the exit code that shells use for SIGINT


def main() -> int:
    """Run the scheduler until it is stopped. Return the exit code."""
    args = _arguments()
    try:
        if not paths.PARAMS.is_file():
            raise ConfigError(f"{paths.PARAMS}: not found in {Path.cwd()}; run this in the root of the repository")
        clock, on_drift = _clock(args.cron, args.timezone), _on_drift()
        with (
            single_instance(_LOCK, f"another scheduler runs in this workspace (it holds {_LOCK}); stop it first"),
            connected(args.port, _log) as server,
            _connection_errors(server),
        ):
            _run(clock, server, on_drift)
        _log("ended")
    except KeyboardInterrupt:  # only before the schedule runs; the schedule handles the signal itself
        return _INTERRUPTED
    except PipelineError as error:
        print(f"serve: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="image-captioning serve",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cron", required=True, help='minute, hour, day, month, weekday; "0 3 * * 1": Mondays at 3')
    parser.add_argument("--timezone", default="UTC", help="of these, like Europe/Berlin (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4200, help="of Prefect's server and pages (default: %(default)s)")
    return parser.parse_args()


def _clock(cron: str, timezone: str) -> CronSchedule:
    """Return the schedule of retraining.

    Raises:
        ConfigError: the cron expression or the time zone is invalid.
    """
    from prefect.server.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        why = " ".join(str(problem["msg"]) for problem in error.errors()) if hasattr(error, "errors") else str(error)
        raise ConfigError(f"--cron {cron!r}, --timezone {timezone!r}: {why}") from None


def _on_drift() -> bool:
    """Return `retrain.on_drift`.

    Raises:
        ConfigError: it is true, and the service records nothing that could be compared; or params.yaml is wrong.
    """
    params = load()
    if params.retrain.on_drift and not params.serving.watch:
        raise ConfigError(
            f"{paths.PARAMS}: retrain.on_drift: found true, but serving.watch is false, so nothing is recorded; set"
            " serving.watch to true and restart the service, or set retrain.on_drift to false"
        )
    return params.retrain.on_drift


@contextlib.contextmanager
def _connection_errors(server: Server) -> Iterator[None]:
    """Report rejected requests and connection failures in one line.

    Raises:
        TemporaryError: the server rejected a request, or the connection failed.
    """
    try:
        yield
    except Exception as error:
        if (why := failure(error)) is None:
            raise
        raise TemporaryError(
            f"the server at {server.address} can't be used ({why}); check that it is Prefect's and that"
            " PREFECT_API_AUTH_STRING is right, or choose another --port; then run this again"
        ) from None


def _run(clock: CronSchedule, server: Server, on_drift: bool) -> None:
    """Clean up after a crash, then start due runs until the schedule is stopped."""
    from flows.workspace import reconcile

    os.environ[OWNER] = process_identity.identity()  # processes started from here end with this one
    reconcile.dead_runs(Path(), _log)
    name = deployment_name(Path.cwd())
    reconcile.runs_of_deployments([f"{flow}/{name}" for flow in ("retrain", "train", "watch")], _log)
    if not on_drift:
        reconcile.forget_deployment(f"watch/{name}")
    with _recorded(clock, server):
        asyncio.run(_schedule(clock, server, on_drift))


def deployment_name(workspace: Path) -> str:
    """Return the name of a workspace's deployments: its folder's name, and a hash of its path on this machine.

    The hash tells apart workspaces of the same name that share a server, also those on different machines.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", workspace.name.lower()).strip("-") or "workspace"
    return f"{slug}-{hashlib.sha256(f'{socket.gethostname()}:{workspace}'.encode()).hexdigest()[:6]}"


@contextlib.contextmanager
def _recorded(clock: CronSchedule, server: Server) -> Iterator[None]:
    """Record the schedule for `image-captioning status` while it runs."""
    schedule = {
        "cron": clock.cron,
        "timezone": clock.timezone,
        "address": server.address.removesuffix("/api"),
        "pages": _pages(server),
        "deployment": f"retrain/{deployment_name(Path.cwd())}",
        "process": process_identity.identity(),
    }
    with swapped_in(paths.SCHEDULE) as (place,):
        write_json(place, schedule)
    try:
        yield
    finally:
        remove(paths.SCHEDULE)


async def _schedule(clock: CronSchedule, server: Server, on_drift: bool) -> None:
    stop = asyncio.Event()
    runner = await _runner(clock, on_drift)
    await _announce(clock, server, on_drift)
    if clone.is_unfinished(Path()):
        _log("the last retraining did not finish; it continues now")
        await _start_now()
    while True:
        work = asyncio.create_task(runner.start())
        await asyncio.sleep(0)  # let the runner set its signal handler, which stops neither itself nor a run
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not stop.is_set() and not work.done():
            await _pause(stop, 1)
            if server.has_died():
                _log("Prefect's server had died; restarting it")
                await asyncio.to_thread(server.start)
        if stop.is_set():
            await _end(runner, work, server)
            return
        _log(f"Prefect's server does not answer ({_reason(work.exception())}); waiting until it does")
        if (ready := await _when_ready(clock, server, stop, on_drift)) is None:
            await _end(runner, work, server)
            return
        runner = ready
        _log("Prefect's server answers again")


async def _when_ready(clock: CronSchedule, server: Server, stop: asyncio.Event, on_drift: bool) -> Runner | None:
    """Return a new runner as soon as the server and its database answer; None if the schedule is stopped before."""
    while not stop.is_set():
        if await asyncio.to_thread(server.is_ready):
            try:
                return await _runner(clock, on_drift)
            except Exception as error:  # it may fail again in between
                if failure(error) is None:
                    raise
        await _pause(stop, _AGAIN_SECONDS)
        if server.has_died():
            await asyncio.to_thread(server.start)
    return None


def _reason(error: BaseException | None) -> str:
    """Return in one line why a runner ended."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (isinstance(error, Exception) and failure(error)) or f"{type(error).__name__}: {error}".partition("\n")[0]


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def _runner(clock: CronSchedule, on_drift: bool) -> Runner:
    """Return the runner that starts due runs, one at a time."""
    from prefect.events import DeploymentEventTrigger, ResourceSpecification
    from prefect.runner import Runner
    from prefect.schedules import Cron

    from flows.retrain import retrain
    from flows.steps import drift_event
    from flows.train import train
    from flows.watch import watch

    runner = Runner(name="image-captioning", pause_on_shutdown=False, limit=1)
    due = [Cron(clock.cron, timezone=clock.timezone)]
    name = deployment_name(Path.cwd())
    triggers: list[DeploymentTriggerTypes | TriggerTypes] = [
        DeploymentEventTrigger(name=f"{name}: retrain when data changed", expect={CHANGED})
    ]
    if on_drift:
        ours = ResourceSpecification({drift_event.WORKSPACE: name})
        triggers.append(
            DeploymentEventTrigger(name=f"{name}: retrain on drift", expect={drift_event.EVENT}, match=ours)
        )
        mondays = [Cron(_DRIFT_CRON, timezone="UTC")]
        await runner.aadd_flow(watch, name=name, schedules=mondays, tags=[TAG])
    await runner.aadd_flow(retrain, name=name, schedules=due, triggers=triggers, tags=[TAG])
    await runner.aadd_flow(train, name=name, tags=[TAG])
    return runner


def _pages(server: Server) -> str:
    """Return the address of Prefect's pages: PREFECT_UI_URL if they are behind a proxy, else the server's own."""
    from prefect.settings import PREFECT_UI_URL

    return (PREFECT_UI_URL.value() or server.address.removesuffix("/api")).rstrip("/")


async def _announce(clock: CronSchedule, server: Server, on_drift: bool) -> None:
    (due,) = await clock.get_dates(1)
    _log(f"Prefect's pages: {_pages(server)}/deployments")
    _log(f"the next retraining is due {due:%A %Y-%m-%d %H:%M %Z}; to start one now, in another shell:")
    _log(f"PREFECT_API_URL={server.address} prefect deployment run retrain/{deployment_name(Path.cwd())}")
    if on_drift:
        _log("drift is looked for on Mondays at 00:30 UTC; a new alarm starts a retraining")
    _log("Ctrl-C ends this and its current run")


async def _start_now() -> None:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"retrain/{deployment_name(Path.cwd())}")
        await client.create_flow_run_from_deployment(deployment.id)


async def _end(runner: Runner, work: asyncio.Task[None], server: Server) -> None:
    """Stop the current run with all its processes, then the runner."""
    _log("stopping; the current run is cancelled and continues at the next start")
    try:
        if await asyncio.to_thread(server.answers):
            await asyncio.wait_for(runner.astop(), _END_SECONDS)
        else:  # the runner would ask the server which runs to stop
            _log(f"{server.address} does not answer; the next start corrects the states that it shows")
            await asyncio.to_thread(_end_runs)
            work.cancel()
        await asyncio.wait({work}, timeout=_END_SECONDS)
    except Exception as error:
        _log(f"cleanup failed, the next start repeats it: {type(error).__name__}: {error}")
    for run in multiprocessing.active_children():  # this process can't exit before its children
        run.kill()
        run.join(_AGAIN_SECONDS)


def _end_runs() -> None:
    """Terminate the current runs and kill them after their stages end, as they then wait only for the server."""
    runs = multiprocessing.active_children()
    for run in runs:
        run.terminate()
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and any(run.pid and process_identity.has_children(run.pid) for run in runs):
        time.sleep(0.2)
    for run in runs:
        run.kill()


def _log(message: str) -> None:
    print(f"serve: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
