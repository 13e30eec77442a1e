"""The flows' Prefect tasks: one per stage and one per step, retried depending on the cause of the failure.

Only DVC decides what is stale, so Prefect's task cache is off. Tasks are called directly: a task runner could not
cancel them while their command prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.exec import artifacts, progress_log, stages
from pipeline.config.params import Params

T = TypeVar("T")

TAG = "image-captioning"
_BAR_SECONDS = 30  # minimum interval between two log lines, and two artifact updates, of a progress bar


def worth_a_retry(task: Task, run: TaskRun, state: State) -> bool:
    """Return whether a failure is transient."""
    try:
        state.result()
    except stages.StageError as failure:
        return failure.worth_a_retry
    except Exception:
        return False
    return False


def stage(params: Params, name: str, ask: bool) -> stages.Outcome:
    """Bring a stage up to date. Return what DVC did.

    Args:
        params: the params; `flow` has the retries and timeouts.
        name: the stage's name.
        ask: whether to run DVC; false if DVC already reported the stage as up to date.

    Raises:
        StageError: it failed, after retries if its failure was transient.
    """

    def work(log: stages.Log) -> stages.Outcome:
        if ask:
            return stages.repro(name, log, params.flow.timeout_minutes.of(name))
        log(f"{name}: is up to date")
        return "nothing"

    outcome = _run(params, name, work)
    if outcome != "nothing":
        artifacts.of_stage(name)
    return outcome


def step(params: Params, name: str, module: str, *arguments: str, ours: bool = False, prefix: str | None = None) -> Any:
    """Run a step that is not a stage, `python -m MODULE`, and return its result (see `stages.command`).

    Raises:
        StageError: it failed, after retries if its failure was transient.
    """
    minutes = params.flow.timeout_minutes.of(name)

    def work(log: stages.Log) -> Any:
        return stages.command(name, module, *arguments, log=log, minutes=minutes, ours=ours, prefix=prefix)

    return _run(params, name, work)


def _run(params: Params, name: str, work: Callable[[stages.Log], T]) -> T:
    @task(
        name=name,
        task_run_name=name,
        tags=[TAG, name],
        cache_policy=NO_CACHE,
        retries=params.flow.retries,
        retry_delay_seconds=exponential_backoff(params.flow.retry_seconds),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_a_retry,
    )
    def tried() -> T:
        return work(progress_log.Throttled(get_run_logger().info, artifacts.Progress(_BAR_SECONDS), _BAR_SECONDS))

    return tried()
