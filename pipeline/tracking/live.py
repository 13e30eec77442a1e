"""Log a training to MLflow while it runs, without letting a failure of MLflow end the training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.config.sections.finetune import CREATED
from pipeline.data.dataset import Example, PictureReader
from pipeline.tracking import run_metrics, runs, samples_page


class Live:
    """Logs a training to MLflow while it runs.

    If MLflow fails, one line is printed and the training continues without it; `register` brings the run up to date.

    Args:
        experiment_name: the MLflow experiment.
        training_key: identifies the training.
        params: logged with the run.
        name: name of a new run, see `run_names.run_name`.
        stage: the stage that trains, `finetune` or `compare`.
    """

    def __init__(
        self,
        experiment_name: str,
        training_key: str,
        params: Mapping[str, Any],
        name: str,
        stage: str = "finetune",
    ) -> None:
        self._stage = stage
        self._stack = contextlib.ExitStack()
        self._run: runs.TrainingRun | None = None
        self._reported = False
        with self._failures_reported():
            store = runs.client()
            experiment_id = runs.experiment(store, experiment_name)
            for dead in runs.close_dead_runs(store, experiment_id):
                print(f"{stage}: closed the MLflow run {dead}, whose process had died", file=sys.stderr)
            tags = {"mlflow.source.name": f"python -m pipeline.{stage}"}
            self._run = self._stack.enter_context(runs.training_run(store, experiment_id, training_key, tags, name))
            self._run.params(params)
            from_scratch = params.get("finetune.checkpoint") in CREATED
            self._run.reserve_metrics(run_metrics.expected(from_scratch, alone=stage == "compare"))
            self._stack.enter_context(self._run.system_metrics())

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        with self._failures_reported():
            if self._run:
                self._run.metrics(values, step)

    def page(self, name: str, html: str) -> None:
        """Log an HTML page, and replace a page of that name."""
        with self._failures_reported():
            if self._run:
                self._run.page(name, html)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._failures_reported():
            self._stack.__exit__(*error)

    @contextlib.contextmanager
    def _failures_reported(self) -> Iterator[None]:
        try:
            yield
        except (*runs.FAILURES, TemporaryError) as error:
            self._run = None
            if self._reported:
                return
            self._reported = True
            why = runs.damage() or runs.first_line(error)
            print(
                f"{self._stage}: no live curves: {why} (training continues; `register` will log the run)",
                file=sys.stderr,
            )


class MlflowLogger:
    """Logs a training to MLflow; see `pipeline.training.trainer.TrainingLogger`."""

    def __init__(self, live: Live, validation: Sequence[Example]) -> None:
        self._live = live
        self._validation = validation

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics of a step or an epoch."""
        self._live.metrics(values, step)

    def samples(self, captions: Sequence[Sequence[str]], best_epoch: int) -> None:
        """Show the captions of the first validation pictures on a page."""
        if captions[-1]:
            reader = PictureReader(paths.DATASET / "validation")
            page = samples_page.render(self._validation, reader, captions, best_epoch)
            self._live.page("samples.html", page)
