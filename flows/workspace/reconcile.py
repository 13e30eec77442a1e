"""Clean up after a crash, in Prefect's UI and in the workspace, at the next start, and report each step.

Each flow run has a record with its process in .work/runs while it runs. A record whose process is gone marks a dead
run, which Prefect's UI would show as `Running` forever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from pipeline.config import paths
from pipeline.runtime import dvc_files, leftovers, process_identity
from pipeline.runtime.atomic_files import read_json, write_json

RUNS = paths.WORK / "runs"
_BEGUN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]

Log = Callable[[str], None]


@contextmanager
def recorded_run(folder: Path) -> Iterator[None]:
    """Record the current flow run in a workspace while it runs."""
    place = folder / RUNS / f"{runtime.flow_run.id}.json"
    write_json(
        place,
        {"flow": runtime.flow_run.flow_name, "name": runtime.flow_run.name, "process": process_identity.identity()},
    )
    try:
        yield
    finally:
        place.unlink(missing_ok=True)


def dead_runs(folder: Path, log: Log) -> list[str]:
    """Close a workspace's flow runs whose process died and return their names."""
    found = []
    with get_client(sync_client=True) as client:
        for place in sorted((folder / RUNS).glob("*.json")):
            try:
                written = read_json(place)
            except ValueError:  # truncated by a full disk
                written = {"name": place.stem, "process": ""}
            if not process_identity.is_alive(written["process"]):
                _close(client, UUID(place.stem), log)
                place.unlink(missing_ok=True)
                found.append(str(written["name"]))
    return found


def runs_of_deployments(names: list[str], log: Log) -> None:
    """Close the unfinished runs of these deployments.

    Only the caller runs these deployments, so no process runs them now.
    """
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                deployment = client.read_deployment_by_name(name)
            except ObjectNotFound:
                continue
            for run in client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_BEGUN))),
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            ):
                _close(client, run.id, log)


def forget_deployment(name: str) -> None:
    """Delete a deployment that is no longer served; its past runs stay."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(name).id)


def _close(client: SyncPrefectClient, run_id: UUID, log: Log) -> None:
    try:
        run = client.read_flow_run(run_id)
    except ObjectNotFound:  # the run belongs to another server
        return
    state = run.state
    if state is None or state.type not in _BEGUN:
        return
    words = "its process died; the next run continues from there"
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))):
        if task.state and task.state.type in _BEGUN:
            client.set_task_run_state(task.id, Crashed(message=words), force=True)
    was_asked = state.type == StateType.CANCELLING
    end: State = Cancelled(message="it was cancelled") if was_asked else Crashed(message=words)
    client.set_flow_run_state(run_id, end, force=True)
    log(f"the run {run.name} was {state.name}, but {words}; now {end.name}")


def missed_runs(log: Log) -> None:
    """Cancel other overdue runs of this run's deployment, because this run covers all of them."""
    deployment = runtime.deployment.id
    if deployment is None:
        return
    with get_client(sync_client=True) as client:
        waiting: list[FlowRun] = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
            ),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(deployment)])),
        )
        for run in waiting:
            due = run.next_scheduled_start_time or run.expected_start_time
            if due and due <= datetime.now(UTC):
                words = f"{runtime.flow_run.name} covers this run too"
                client.set_flow_run_state(run.id, Cancelled(message=words), force=True)
                log(f"the run {run.name}, due {due:%Y-%m-%d %H:%M}, is cancelled: one run covers all")


def dead_lock(log: Log) -> None:
    """Remove DVC's lock file in the current folder if no process holds it."""
    if dvc_files.remove_dead_lock():
        log(f"removed {dvc_files.RWLOCK}: the DVC process that held it has died")


def half_written(log: Log) -> None:
    """Remove the partial outputs of killed stages in the current folder."""
    for place in leftovers.half_written():
        leftovers.put_right(place)
        log(f"removed {place}, an incomplete output of a killed stage")
