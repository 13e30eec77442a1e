"""The door to MLflow: its store, and training runs with what they learned. (`registry` has the versions.)

A training has one run, found again by its tag `training_key`. SQLite in the workspace by default
(`mlflow.db`, artifacts in `mlartifacts/`); any server through `MLFLOW_TRACKING_URI`.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime import process_identity

TRAINING_KEY = "training_key"
RESTORED = "restored"  # the run was made from the files of a training that this server never saw

_HEARTBEAT_SECONDS = 60
_DEAD_AFTER_SECONDS = 15 * _HEARTBEAT_SECONDS
_LOCK_SECONDS = 120
_SQLITE = "sqlite:///"
FAILURES = (MlflowException, OSError)  # what an MLflow store that can't be reached raises


def client() -> mlflow.MlflowClient:
    """A client of the store in use, made and brought up to date first where it is our own SQLite file.

    Raises:
        TemporaryError: the store can't be reached.
    """
    # Alembic tells every step of making the tables; nobody here wants to read it.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute()}")
    lock = _home() / paths.WORK / "locks" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A new SQLite file that several processes open at once is corrupted, so one makes it.
        with FileLock(lock, timeout=_LOCK_SECONDS):
            store = mlflow.MlflowClient()
            store.search_experiments(max_results=1)
        return store
    except FAILURES as error:
        raise _unreachable(error) from None


def uri() -> str:
    """The address of the store in use."""
    return str(mlflow.get_tracking_uri())


def _home() -> Path:
    """The folder of our own SQLite file, in which the artifacts lie too; else the current one."""
    return Path(uri().removeprefix(_SQLITE)).parent if uri().startswith(_SQLITE) else Path()


def first_line(error: Exception) -> str:
    """What an error says, without what follows below."""
    return shown((str(error).splitlines() or [type(error).__name__])[0])


def shown(text: str) -> str:
    """A text for people without the names and passwords that an address in it may have before its host."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _unreachable(error: Exception) -> TemporaryError:
    return TemporaryError(
        f"MLflow at {shown(uri())} can't be used ({first_line(error)}); start that server or"
        " set MLFLOW_TRACKING_URI to one that runs (unset: mlflow.db in this folder), then run it again"
    )


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Tell a failure of MLflow as one that may pass.

    Raises:
        TemporaryError: MLflow failed within the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the disk of this machine; what `requests` raises has none
            raise
        raise _unreachable(error) from None
    except MlflowException as error:
        raise _unreachable(error) from None


def experiment(store: mlflow.MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made where there is none.

    Raises:
        ConfigError: an experiment of that name was deleted.
    """
    found = store.get_experiment_by_name(name)
    if found is None:
        own = uri().startswith(_SQLITE)
        location = ((_home() / "mlartifacts").absolute() / name).as_uri() if own else None
        return str(store.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"params.yaml: register.experiment: the experiment {name} was deleted in MLflow; restore it"
            f" (`mlflow experiments restore -x {found.experiment_id}`) or name another"
        )
    return str(found.experiment_id)


def find_run(store: mlflow.MlflowClient, experiment_id: str, training_key: str) -> Run | None:
    """The run of a training, if the store knows it."""
    runs = store.search_runs([experiment_id], f"tags.{TRAINING_KEY} = '{training_key}'", max_results=1)
    return runs[0] if runs else None


def close_dead_runs(store: mlflow.MlflowClient, experiment_id: str) -> list[str]:
    """Close the runs that say they are running but whose process is gone; returns their names.

    On this host the process is looked for; of another host only the heartbeat can be judged.
    """
    closed = []
    for run in store.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if "process" not in tags:
            continue  # not one of ours
        if tags.get("host") == socket.gethostname():
            dead = not process_identity.is_alive(tags["process"])
        else:
            dead = time.time() - float(tags.get("heartbeat", 0)) > _DEAD_AFTER_SECONDS
        if dead:
            store.set_tag(run.info.run_id, "closed_because", "its process died")
            store.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED))
            closed.append(run.info.run_name or run.info.run_id)
    return closed


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


class TrainingRun:
    """A run while it is written to. What was logged of a metric before is not logged twice."""

    def __init__(self, store: mlflow.MlflowClient, run: Run) -> None:
        self._store = store
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name or self.id
        self._last_step: dict[str, int] = {}
        self._had = set(run.data.metrics)
        self._params = set(run.data.params)
        self._tags = set(run.data.tags)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log params that the run does not have yet."""
        new = [Param(key, str(value)) for key, value in values.items() if key not in self._params]
        self._store.log_batch(self.id, params=new)
        self._params.update(param.key for param in new)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step; steps that an earlier attempt at the same training logged are left out."""
        now = int(time.time() * 1000)
        fresh = [Metric(key, value, now, step) for key, value in values.items() if step > self._last(key)]
        if fresh:
            self._store.log_batch(self.id, metrics=fresh)

    def replace_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics that are measured again when their params change; the newest value counts."""
        now = int(time.time() * 1000)
        self._store.log_batch(self.id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags that the run does not have yet: where a training came from does not change afterwards."""
        self._store.log_batch(self.id, tags=[RunTag(k, v) for k, v in values.items() if k not in self._tags])

    def trained_on(self, name: str, sha256: str) -> None:
        """Name the data set that the run learned from, once."""
        digest = sha256[:36]  # all that MLflow takes
        if not self._store.get_run(self.id).inputs.dataset_inputs:
            dataset = Dataset(name=name, digest=digest, source_type="local", source=name)
            context = [InputTag("mlflow.data.context", "training")]
            self._store.log_inputs(self.id, [DatasetInput(dataset, context)])

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log this machine's CPU, memory, disk, network and GPUs every ten seconds until the block ends."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # its comings and goings are no news
        monitor = SystemMetricsMonitor(self.id, resume_logging=True)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def describe(self, text: str) -> None:
        """Set the description (Markdown) that stands on the run's page."""
        self._store.set_tag(self.id, "mlflow.note.content", text)

    def file(self, path: Path, again: bool) -> None:
        """Keep a copy of a file with the run; one that the run has already is replaced only if `again`."""
        if again or not self._has(path.name):
            self._store.log_artifact(self.id, str(path))

    def page(self, name: str, html: str) -> None:
        """Keep a page with the run, in place of the one of that name."""
        self._store.log_text(self.id, html, name)

    def _has(self, name: str) -> bool:
        return any(found.path == name for found in self._store.list_artifacts(self.id))

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table under a name, unless the run has it; columns of bytes are shown as pictures."""
        if self._has(name):
            return  # log_table would append the rows once more
        shown = {
            key: [mlflow.Image(_array(value)) if isinstance(value, bytes) else value for value in values]
            for key, values in columns.items()
        }
        self._store.log_table(self.id, shown, name)

    def _last(self, key: str) -> int:
        if key not in self._last_step:
            history = self._store.get_metric_history(self.id, key) if key in self._had else []
            self._last_step[key] = max((metric.step for metric in history), default=-1)
        return self._last_step[key]


def _array(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def training_run(
    store: mlflow.MlflowClient, experiment_id: str, training_key: str, tags: Mapping[str, str]
) -> Iterator[TrainingRun]:
    """The run of a training, opened for writing: the one that is there, or a new one with `tags`.

    It says that it is running, and beats, until the block ends; then whether the block failed.
    """
    beating = {"host": socket.gethostname(), "process": process_identity.identity(), "heartbeat": f"{time.time():.0f}"}
    run = find_run(store, experiment_id, training_key)
    if run is None:
        who = {"mlflow.user": _user(), "mlflow.source.name": "python -m pipeline.finetune"}
        every = {**who, **tags, TRAINING_KEY: training_key, **beating}
        run = store.create_run(experiment_id, run_name=f"git-{training_key[:8]}", tags=every)
    else:
        store.update_run(run.info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        for key, value in beating.items():
            store.set_tag(run.info.run_id, key, value)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(*FAILURES):
                store.set_tag(run.info.run_id, "heartbeat", f"{time.time():.0f}")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    status = RunStatus.FAILED
    try:
        yield TrainingRun(store, run)
        status = RunStatus.FINISHED
    finally:
        ended.set()
        thread.join()
        store.set_terminated(run.info.run_id, RunStatus.to_string(status))


class Live:
    """Shows a training in MLflow while it goes on.

    A training is worth more than its curve: when MLflow fails, that is said once and the training goes on;
    `register` brings the run up to date later.
    """

    def __init__(self, experiment_name: str, training_key: str, params: Mapping[str, Any]) -> None:
        self._stack = contextlib.ExitStack()
        self._run: TrainingRun | None = None
        with self._forgiven():
            store = client()
            experiment_id = experiment(store, experiment_name)
            for name in close_dead_runs(store, experiment_id):
                print(f"finetune: closed the MLflow run {name}, whose process had died", file=sys.stderr)
            self._run = self._stack.enter_context(training_run(store, experiment_id, training_key, {}))
            self._run.params(params)
            self._stack.enter_context(self._run.system_metrics())

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        with self._forgiven():
            if self._run:
                self._run.metrics(values, step)

    def page(self, name: str, html: str) -> None:
        """Keep a page with the run, in place of the one of that name."""
        with self._forgiven():
            if self._run:
                self._run.page(name, html)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._forgiven():
            self._stack.__exit__(*error)

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except (*FAILURES, TemporaryError) as error:
            self._run = None
            print(
                f"finetune: no live curves: {first_line(error)} (training goes on; `register` will log them)",
                file=sys.stderr,
            )
