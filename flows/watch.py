"""The flow that looks for drift once a week: `image-captioning watch` as a Prefect task.

`image-captioning serve` schedules it if `retrain.on_drift` is true. A new alarm is an event, which starts the
retraining.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.exec import running, tasks
from flows.workspace import reconcile
from pipeline.config.params import load


@flow(name="watch", description="Look for drift of what the service sees; a new alarm is sent as an event.")
def watch() -> State | None:
    """Compare the complete weeks with the data set. The final state says whether there was an alarm."""
    return running.with_failures(_watch)


def _watch() -> State:
    params, log = load(), get_run_logger().info
    reconcile.dead_runs(Path(), log)
    reconcile.missed_runs(log)
    with reconcile.recorded_run(Path()), running.workspace_locked("`flows.watch`", params.flow.wait_minutes, log):
        reconcile.dead_lock(log)
        report = tasks.step(params, "watch", "pipeline.cli", "watch", prefix="watch")
    weeks = [week for week in report["weeks"] if week["alarms"]]
    if not weeks:
        return Completed(name="No drift", message=f"{len(report['weeks'])} weeks: no drift from the data set")
    last = weeks[-1]
    return Completed(name="Drift", message=f"{last['week']}: drift of {' and '.join(last['alarms'])}")


if __name__ == "__main__":
    sys.exit(running.main(watch, "done"))
