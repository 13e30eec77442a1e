"""The training flow: the five stages as Prefect tasks, with the same result as `dvc repro`.

    python -m flows.train

A stage that was killed, ran out of memory or said that its failure is temporary is tried again, after longer
and longer waits; bad data (65) and bad configuration (78) fail at once, with the stage's own words. DVC alone
decides what is stale, so Prefect's task cache is off.
"""

from __future__ import annotations

import logging
import sys

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows import stages

_RETRIES = 3
_FIRST_WAIT_SECONDS = 10


def worth_a_retry(task: Task, run: TaskRun, state: State) -> bool:
    """Whether a stage's failure may pass."""
    try:
        state.result()
    except stages.StageError as failure:
        return failure.worth_a_retry
    except Exception:
        return False
    return False


@task(
    task_run_name="{stage}",
    tags=["image-captioning"],
    cache_policy=NO_CACHE,
    retries=_RETRIES,
    retry_delay_seconds=exponential_backoff(_FIRST_WAIT_SECONDS),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_a_retry,
)
def run_stage(stage: str) -> None:
    """Bring one stage up to date."""
    stages.run(stage, get_run_logger().info)


@flow(name="train")
def train() -> None:
    """Bring all stages up to date, one after the other."""
    for stage in stages.STAGES:
        run_stage(stage)


def main() -> int:
    """Run the flow; returns the exit code, which is that of the stage that failed."""
    try:
        train()
        code, words = 0, "every stage is up to date; look with `make ui`, or at reports/evaluate/gallery.html"
    except stages.StageError as failure:
        code = failure.code if failure.code > 0 else 128 - failure.code
        words = str(failure)
    # Prefect tells of its server's end after this; the last line is to be ours.
    logging.getLogger("prefect").setLevel(logging.WARNING)
    print(f"flows.train: {words}", file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
