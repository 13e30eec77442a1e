"""The training flow: run the stages as Prefect tasks in this workspace, with the same result as `dvc repro`.

    image-captioning train

Crashes, out-of-memory kills and transient errors (exit code 75) are retried with exponential backoff. Bad data (65) and
bad configuration (78) fail at once, with the stage's own message.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from flows.exec import artifacts, running, stages, tasks
from flows.workspace import reconcile
from pipeline.config.params import Params, load


@flow(name="train", description="Bring every stage in this workspace up to date, like `dvc repro`.")
def train() -> State | None:
    """Bring all stages up to date, one after the other. Return the state of a failed run, None on success."""
    return running.with_failures(_train)


def _train() -> None:
    params, log = load(), get_run_logger().info
    died = reconcile.dead_runs(Path(), log)
    with reconcile.recorded_run(Path()), running.workspace_locked("`flows.train`", params.flow.wait_minutes, log):
        reconcile.dead_lock(log)
        if died:
            tasks.step(params, "close_dead_runs", "pipeline.tracking.retention", "close-dead-runs", ours=True)
        if any(outcome != "nothing" for outcome in run_stages(params).values()):
            show_status(params)


def run_stages(params: Params) -> dict[str, stages.Outcome]:
    """Run the stages in the current folder, and return what DVC did for each.

    Raises:
        StageError: a stage failed, after retries if its failure was transient.
    """
    stale = set(tasks.step(params, "commit_raw", "flows.steps.commit_raw", ours=True)["stale"])
    outcomes: dict[str, stages.Outcome] = {}
    ran = False
    for stage in stages.STAGES:  # the outputs of a stage may make later stages stale
        if stage == "compare" and not params.compare.architectures:
            continue
        outcomes[stage] = tasks.stage(params, stage, ask=ran or stage in stale)
        ran = ran or outcomes[stage] != "nothing"
    if outcomes["register"] == "restored":  # DVC restored the report; MLflow may have lost the version
        register(params)
    return outcomes


def show_status(params: Params) -> dict[str, Any]:
    """Show the model's status in MLflow next to the champion's, and return it.

    Raises:
        StageError: it failed, after retries if its failure was transient.
    """
    status: dict[str, Any] = tasks.step(params, "model_status", "pipeline.tracking.model_status", ours=True)
    artifacts.figures(status)
    return status


def register(params: Params) -> None:
    """Register the model if MLflow does not have it, whatever DVC's records say.

    Raises:
        StageError: it failed, after retries if its failure was transient.
    """
    tasks.step(params, "register", "pipeline.register")


if __name__ == "__main__":
    sys.exit(running.main(train, "every stage is up to date; look with `image-captioning ui`, or at the gallery"))
