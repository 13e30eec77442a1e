"""Retrain on a schedule and on events, on this machine, one run at a time.

    image-captioning serve --cron "0 3 * * 1"

This command starts a local Prefect server (SQLite, on 127.0.0.1), unless PREFECT_API_URL or the Prefect profile names
a running one. When you stop the command, it ends its runs and Prefect shows them as cancelled. `prefect.yaml` defines
the same deployments for a work pool.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from flows.workspace import clone
from pipeline.config import paths
from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import remove, swapped_in, write_json
from pipeline.runtime.workspace_lock import OWNER

if TYPE_CHECKING:
    from prefect.runner import Runner
    from prefect.server.schemas.schedules import CronSchedule

SCHEDULED, BY_HAND = "scheduled", "by-hand"  # the deployments retrain/scheduled and train/by-hand
TAG = "image-captioning"
_WORKSPACE = "workspace:"  # prefix of the tag that names a deployment's workspace
CHANGED = "image-captioning.data.changed"  # the event that starts a retraining
_LOCK = paths.WORK / "locks" / "scheduler.lock"
_LOG = paths.WORK / "prefect-server.log"
_START_SECONDS = 120.0  # enough for the server's first start on a busy machine
_END_SECONDS = 120.0
_AGAIN_SECONDS = 5.0
_NO_SERVER = ("Failed to reach API", "Found incompatible versions")  # prefixes of Prefect's error messages
_INTERRUPTED = 130  # the exit code that shells use for SIGINT


def main() -> int:
    """Run the schedule until it is stopped and return the exit code."""
    args = _arguments()
    try:
        if not paths.PARAMS.is_file():
            raise ConfigError(f"{paths.PARAMS}: not found in {Path.cwd()}; run this in the root of the repository")
        clock = _clock(args.cron, args.timezone)
        with _alone(), _server(args.port) as server, _in_one_line(server):
            _run(clock, server)
        _say("ended")
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


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Prevent a second scheduler in this workspace.

    Raises:
        TemporaryError: another scheduler already runs.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(_LOCK)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise TemporaryError(f"another flows.serve runs in this workspace (it holds {_LOCK}); end it first") from None
    try:
        yield
    finally:
        held.release()


class _Server:
    """A Prefect server, either our own or an external one. Our own server is restarted if it dies."""

    def __init__(self, address: str, port: int | None) -> None:
        """Create a handle for a server; `port` is the port of our own server, None for an external one."""
        self.address = address
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_own(self) -> bool:
        """Return whether this is our own server, which uses this machine's database."""
        return self._port is not None

    @property
    def environment(self) -> str:
        """Return the prefix for a shell command that uses this server.

        The prefix is empty for our own server: it has stopped by then, and Prefect uses its database by default.
        """
        return f"PREFECT_API_URL={self.address} " if self._port is None else ""

    def answers(self) -> bool:
        """Return whether the server responds."""
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, ValueError, http.client.HTTPException):  # the last two: invalid address, no HTTP response
            return False

    def start(self) -> None:
        """Start the server if it is our own, and wait until it responds.

        Raises:
            TemporaryError: the server does not respond.
        """
        if self._port is not None:
            with _LOG.open("ab" if self._process else "wb") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "flows.exec.server", "--port", str(self._port)],
                    env={**os.environ, OWNER: process_identity.identity()},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if self.has_died():
                raise TemporaryError(f"Prefect's server does not start; {_LOG} says why")
            if time.monotonic() > deadline or self._process is None:
                raise TemporaryError(f"no Prefect server answers at {self.address}; start it, then run this again")
            time.sleep(0.2)

    def has_died(self) -> bool:
        """Return whether our own server was started and has exited."""
        return self._process is not None and self._process.poll() is not None

    def end(self) -> None:
        """Stop our own server."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_AGAIN_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextlib.contextmanager
def _server(port: int) -> Iterator[_Server]:
    """Yield the configured server or the one that runs at the port, else a temporary server of our own."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    own = f"http://127.0.0.1:{port}/api"
    server = _Server(configured or own, None)
    if not configured and not server.answers():
        _say("starts Prefect's server ...")
        server = _Server(own, port)
    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.address}):
            yield server
    finally:
        server.end()


@contextlib.contextmanager
def _in_one_line(server: _Server) -> Iterator[None]:
    """Report rejected requests and connection failures in one line.

    Raises:
        TemporaryError: the server rejected a request, or the connection failed.
    """
    import httpx

    try:
        yield
    except (httpx.HTTPError, RuntimeError) as error:  # includes Prefect's PrefectHTTPStatusError
        if isinstance(error, RuntimeError) and not str(error).startswith(_NO_SERVER):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip("/")
        raise TemporaryError(
            f"the server at {server.address} can't be used ({why}); is it Prefect's, and PREFECT_API_AUTH_STRING what"
            " it asks for? Mend that or give another --port, then run this again"
        ) from None


def _run(clock: CronSchedule, server: _Server) -> None:
    """Clean up after a crash, then start due runs until the schedule is stopped."""
    from flows.workspace import reconcile

    _refuse_anothers(server)
    os.environ[OWNER] = process_identity.identity()  # processes started from here end with this one
    reconcile.dead_runs(Path(), _say)
    reconcile.runs_of_deployments([f"retrain/{SCHEDULED}", f"train/{BY_HAND}"], _say)
    with _recorded(clock, server):
        asyncio.run(_schedule(clock, server))


@contextlib.contextmanager
def _recorded(clock: CronSchedule, server: _Server) -> Iterator[None]:
    """Record the schedule for `image-captioning status` while it runs."""
    schedule = {
        "cron": clock.cron,
        "timezone": clock.timezone,
        "address": server.address.removesuffix("/api"),
        "deployment": f"retrain/{SCHEDULED}",
        "process": process_identity.identity(),
    }
    with swapped_in(paths.SCHEDULE) as (place,):
        write_json(place, schedule)
    try:
        yield
    finally:
        remove(paths.SCHEDULE)


def _workspace_tag() -> str:
    return f"{_WORKSPACE}{socket.gethostname()}:{Path.cwd()}"


def _refuse_anothers(server: _Server) -> None:
    """Refuse a server that serves another workspace: each scheduler would run and close the other's runs.

    Raises:
        ConfigError: the server serves another workspace.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            tags = client.read_deployment_by_name(f"retrain/{SCHEDULED}").tags
        except ObjectNotFound:
            return
    for tag in tags:  # tags from older versions and `prefect.yaml` name no workspace
        host, _, place = tag.removeprefix(_WORKSPACE).partition(":")
        if tag.startswith(_WORKSPACE) and tag != _workspace_tag() and _is_served(server, host, Path(place)):
            # Our own servers share the database in PREFECT_HOME, even on different ports.
            raise ConfigError(
                f"{server.address}: serves the workspace {host}:{place}; give this one a server of its own (another"
                f" --port and another PREFECT_HOME), or end flows.serve there and run: {server.environment}prefect"
                f" deployment delete retrain/{SCHEDULED}"
            )


def _is_served(server: _Server, host: str, place: Path) -> bool:
    """Return whether `flows.serve` runs in a workspace; assume so on other machines, which can't be checked."""
    if not server.is_own and host != socket.gethostname():
        return True
    if not (place / _LOCK).is_file():  # the workspace is gone
        return False
    try:
        with FileLock(place / _LOCK, timeout=0):
            return False
    except Timeout:
        return True


async def _schedule(clock: CronSchedule, server: _Server) -> None:
    stop = asyncio.Event()
    runner = await _runner(clock)
    await _tell(clock, server)
    if clone.is_unfinished(Path()):
        _say("the last retraining did not come to its end; it goes on now")
        await _start_now()
    while True:
        work = asyncio.create_task(runner.start())
        await asyncio.sleep(0)  # let the runner set its signal handler, which stops neither itself nor a run
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not stop.is_set() and not work.done():
            await _pause(stop, 1)
            if server.has_died():
                _say("Prefect's server had died; it is started again")
                await asyncio.to_thread(server.start)
        if stop.is_set():
            await _end(runner, work, server)
            return
        _say(f"Prefect's server does not answer ({work.exception()}); waits until it does")
        while not stop.is_set() and not server.answers():
            await _pause(stop, _AGAIN_SECONDS)
        runner = await _runner(clock)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def _runner(clock: CronSchedule) -> Runner:
    """Return the runner that starts due runs, one at a time."""
    from prefect.events import DeploymentEventTrigger
    from prefect.runner import Runner
    from prefect.schedules import Cron

    from flows.retrain import retrain
    from flows.train import train

    runner = Runner(name="image-captioning", pause_on_shutdown=False, limit=1)
    due = [Cron(clock.cron, timezone=clock.timezone)]
    tags = [TAG, _workspace_tag()]
    trigger = DeploymentEventTrigger(name="retrain when data changed", expect={CHANGED})
    await runner.aadd_flow(retrain, name=SCHEDULED, schedules=due, triggers=[trigger], tags=tags)
    await runner.aadd_flow(train, name=BY_HAND, tags=tags)
    return runner


async def _tell(clock: CronSchedule, server: _Server) -> None:
    (due,) = await clock.get_dates(1)
    _say(f"Prefect's pages: {server.address.removesuffix('/api')}/deployments")
    _say(f"the next retraining is due {due:%A %Y-%m-%d %H:%M %Z}; to start one now, in another shell:")
    _say(f"PREFECT_API_URL={server.address} prefect deployment run retrain/{SCHEDULED}")
    _say("Ctrl-C ends this, and a run that goes on with it")


async def _start_now() -> None:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"retrain/{SCHEDULED}")
        await client.create_flow_run_from_deployment(deployment.id)


async def _end(runner: Runner, work: asyncio.Task[None], server: _Server) -> None:
    """Stop the current run with all its processes, then the runner."""
    _say("ends; a run that goes on is cancelled, and goes on where it was next time")
    try:
        if await asyncio.to_thread(server.answers):
            await asyncio.wait_for(runner.astop(), _END_SECONDS)
        else:  # the runner would ask the server which runs to stop
            _say(f"{server.address} does not answer; the next start will put in order what it shows")
            await asyncio.to_thread(_end_runs)
            work.cancel()
        await asyncio.wait({work}, timeout=_END_SECONDS)
    except Exception as error:
        _say(f"not all was put in order, the next start will: {type(error).__name__}: {error}")
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


def _say(words: str) -> None:
    print(f"serve: {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
