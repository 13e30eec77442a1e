"""What the flows are made of: a Prefect task a stage, and one a step beside the stages, tried again by cause.

DVC alone decides what is stale, so Prefect's task cache is off. Tasks are called directly: submitted to a task runner
they could not be ended while their command is silent.
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
_BAR_SECONDS = 30  # between two lines of a progress bar in the log


def worth_a_retry(task: Task, run: TaskRun, state: State) -> bool:
    """Whether a failure may pass."""
    try:
        state.result()
    except stages.StageError as failure:
        return failure.worth_a_retry
    except Exception:
        return False
    return False


def stage(params: Params, name: str, ask: bool) -> stages.Outcome:
    """Bring a stage up to date; gives what was to be done.

    Args:
        params: that say how often and how long it is tried.
        name: of the stage.
        ask: whether DVC has to be asked; else it has said already that the stage is up to date.

    Raises:
        StageError: it failed, and was tried again where that could help.
    """

    def work(tell: stages.Tell) -> stages.Outcome:
        if ask:
            return stages.repro(name, tell, params.flow.timeout_minutes.of(name))
        tell(f"{name}: is up to date")
        return "nothing"

    outcome = _run(params, name, work)
    if outcome != "nothing":
        artifacts.of_stage(name)
    return outcome


def step(params: Params, name: str, module: str, *arguments: str, ours: bool = False, prefix: str | None = None) -> Any:
    """Run a command beside the stages, `python -m MODULE`, and return its result (see `stages.command`).

    Raises:
        StageError: it failed, after retries if its failure was transient.
    """
    minutes = params.flow.timeout_minutes.of(name)

    def work(tell: stages.Tell) -> Any:
        return stages.command(name, module, *arguments, tell=tell, minutes=minutes, ours=ours, prefix=prefix)

    return _run(params, name, work)


def _run(params: Params, name: str, work: Callable[[stages.Tell], T]) -> T:
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
        return work(progress_log.Throttled(get_run_logger().info, artifacts.Progress(), _BAR_SECONDS))

    return tried()
