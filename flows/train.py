"""The training flow: the five stages as Prefect tasks, in this workspace, with the same result as `dvc repro`.

    python -m flows.train

A stage that was killed, ran out of memory or said that its failure is temporary is tried again, after longer and
longer waits; bad data (65) and bad configuration (78) fail at once, with the stage's own words.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State

from flows.exec import artifacts, running, stages, tasks
from flows.steps.commit_raw import SETTLED
from flows.workspace import reconcile
from pipeline.config import paths
from pipeline.config.params import Params, load
from pipeline.runtime.atomic_files import read_json


@flow(name="train", description="Brings every stage up to date in this workspace, as `dvc repro` does.")
def train() -> State | None:
    """Bring all stages up to date, one after the other; gives the state of a run that failed."""
    return running.in_words(_train)


def _train() -> None:
    params, tell = load(), get_run_logger().info
    died = reconcile.dead_runs(Path(), tell)
    with reconcile.slip(Path()), running.claimed("`flows.train`", params.flow.wait_minutes, tell):
        reconcile.dead_lock(tell)
        if died:
            tasks.step(params, "close", "pipeline.tracking.retention", "close", ours=True)
        run_stages(params)


def run_stages(params: Params) -> stages.Outcome:
    """Run the stages in the current folder, and show what came out; gives what was to be done to register the model.

    Raises:
        StageError: a stage failed, and was tried again where that could help.
    """
    tasks.step(params, "commit_raw", "flows.steps.commit_raw", ours=True)
    stale = set(read_json(SETTLED)["stale"])
    outcome: stages.Outcome = "nothing"
    ran = False
    for stage in stages.STAGES:  # what a stage makes may make those after it stale
        outcome = tasks.stage(params, stage, ask=ran or stage in stale)
        ran = ran or outcome != "nothing"
    if outcome == "restored":  # DVC knows what registering had made once, not what MLflow has now
        register(params)
    if ran:
        show(params)
    return outcome


def show(params: Params) -> dict[str, Any]:
    """Show how the model stands in MLflow, beside the champion; gives what is known of it.

    Raises:
        StageError: it can't be known, and was tried again where that could help.
    """
    tasks.step(params, "model_status", "pipeline.tracking.model_status", ours=True)
    standing: dict[str, Any] = read_json(paths.STANDING)
    artifacts.figures(standing)
    return standing


def register(params: Params) -> None:
    """Register the model where MLflow does not have it, whatever DVC thinks.

    Raises:
        StageError: it failed, and was tried again where that could help.
    """
    tasks.step(params, "register", "pipeline.register")


if __name__ == "__main__":
    sys.exit(running.main(train, "every stage is up to date; look with `make ui`, or at reports/evaluate/gallery.html"))
