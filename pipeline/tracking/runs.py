"""MLflow's store, and the run of each training. Registered versions are in `registry.py`.

A training has one run, identified by the tag `training_key`. By default the store is SQLite in the workspace
(`mlflow.db`, artifacts in `mlartifacts/`); set `MLFLOW_TRACKING_URI` to use a server.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported
# A server with an S3 store sends its users there, under the store's address. Only the server may know that address, so
# files come and go through the server.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config.errors import ConfigError, TemporaryError, is_disk_full
from pipeline.runtime import process_identity
from pipeline.tracking import database

TRAINING_KEY = "training_key"
RESTORED = "restored"  # a tag: `register` made the run from the files of a training

_HEARTBEAT_SECONDS = 60
_DEAD_AFTER_SECONDS = 15 * _HEARTBEAT_SECONDS
_MACHINE = "machine/"  # prefix of the metrics of the machine
FAILURES = (MlflowException, OSError, SQLAlchemyError)  # raised if MLflow can't be reached


def client() -> mlflow.MlflowClient:
    """Return a client of the store; create and migrate our own SQLite file first.

    Raises:
        TemporaryError: the store can't be reached, or its SQLite file is damaged.
        ConfigError: the folder of its SQLite file does not exist.
    """
    # Alembic logs every step of creating the tables, and MLflow each failure with its traceback.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute()}")
    if file := database.file_of(uri()):
        database.check(file)
    try:
        # Several processes that create one SQLite file at once corrupt it, so they take turns.
        with database.locked(_home()):
            store = mlflow.MlflowClient()
            store.search_experiments(max_results=1)
        return store
    except FAILURES as error:
        raise _unreachable(error) from None


def uri() -> str:
    """Return the address of the store."""
    return str(mlflow.get_tracking_uri())


def _home() -> Path:
    """Return the folder of our own SQLite file and its artifacts; with a server, the current folder."""
    file = database.file_of(uri())
    return file.parent if file else Path()


def first_line(error: Exception) -> str:
    """Return the first line of an error message, without passwords."""
    return shown((str(error).splitlines() or [type(error).__name__])[0])


def shown(text: str) -> str:
    """Return a text without the user names and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def damage() -> str | None:
    """Return what is wrong with the SQLite file of the store, and what fixes it; None if nothing is."""
    file = database.file_of(uri())
    why = database.damage(file, thorough=True) if file else None
    return f"{file}: MLflow's database is damaged ({why}); {database.DOCTOR}" if why else None


def _unreachable(error: Exception) -> TemporaryError:
    if damaged := damage():
        return TemporaryError(damaged)
    return TemporaryError(
        f"MLflow at {shown(uri())} can't be used ({first_line(error)}); start that server or"
        " set MLFLOW_TRACKING_URI to one that runs (unset: mlflow.db in this folder), then run it again"
    )


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Turn failures of MLflow into `TemporaryError`.

    Raises:
        TemporaryError: MLflow failed within the block, or the disk is full.
    """
    try:
        yield
    except FAILURES as error:
        if is_disk_full(error):
            where = getattr(error, "filename", None) or database.fullest(_home(), Path(tempfile.gettempdir()))
            raise TemporaryError(f"the disk is full at {where}; free some space, then run it again") from None
        # An error of this machine's disk; errors of `requests` have no errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreachable(error) from None


def experiment(store: mlflow.MlflowClient, name: str) -> str:
    """Return the id of the experiment `name`, and create it if it does not exist.

    Raises:
        ConfigError: an experiment of that name was deleted.
    """
    found = store.get_experiment_by_name(name)
    if found is None:
        own = database.file_of(uri())
        location = ((own.parent / database.ARTIFACTS).absolute() / name).as_uri() if own else None
        try:
            return str(store.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = store.get_experiment_by_name(name)  # another process has just created it
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"params.yaml: register.experiment: the experiment {name} was deleted in MLflow; restore it"
            f" (`mlflow experiments restore -x {found.experiment_id}`) or name another"
        )
    return str(found.experiment_id)


def find_run(store: mlflow.MlflowClient, experiment_id: str, training_key: str) -> Run | None:
    """Return the run of a training, the oldest if there are several, or None."""
    runs = store.search_runs([experiment_id], f"tags.{TRAINING_KEY} = '{training_key}'")
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def dead_runs(store: mlflow.MlflowClient, experiment_id: str) -> list[Run]:
    """Return the runs with status RUNNING whose process died.

    For runs of this host the process is checked, for runs of other hosts the heartbeat.
    """
    found = []
    for run in store.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        tags = run.data.tags
        if "process" not in tags:
            continue  # not a run of this pipeline
        if tags.get("host") == socket.gethostname():
            dead = not process_identity.is_alive(tags["process"])
        else:
            dead = time.time() - float(tags.get("heartbeat", 0)) > _DEAD_AFTER_SECONDS
        found += [run] if dead else []
    return found


def close(store: mlflow.MlflowClient, run: Run) -> None:
    """Close a run whose process died."""
    store.set_tag(run.info.run_id, "closed_because", "its process died")
    store.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED))


def close_dead_runs(store: mlflow.MlflowClient, experiment_id: str) -> list[str]:
    """Close the runs with status RUNNING whose process died, and return their names."""
    dead = dead_runs(store, experiment_id)
    for run in dead:
        close(store, run)
    return [run.info.run_name or run.info.run_id for run in dead]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


class TrainingRun:
    """A run that is open for writing. Metrics of steps that were logged before are not logged again."""

    def __init__(self, store: mlflow.MlflowClient, run: Run) -> None:
        self._store = store
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name or self.id
        self._last_step: dict[str, int] = {}
        self._had = set(run.data.metrics)
        self._params = set(run.data.params)
        self._tags = set(run.data.tags)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log the params that the run does not have yet."""
        new = [Param(key, str(value)) for key, value in values.items() if key not in self._params]
        self._store.log_batch(self.id, params=new)
        self._params.update(param.key for param in new)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step, unless an earlier attempt at this training logged that step."""
        now = int(time.time() * 1000)
        fresh = [Metric(key, value, now, step) for key, value in values.items() if step > self._last(key)]
        if fresh:
            self._store.log_batch(self.id, metrics=fresh)

    def replace_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics again; the newest value counts."""
        now = int(time.time() * 1000)
        self._store.log_batch(self.id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])

    def reserve_metrics(self, names: Sequence[str]) -> None:
        """Log NaN, which `replace_metrics` replaces: MLflow's page shows metrics in the order of their first values."""
        self.metrics(dict.fromkeys(names, math.nan))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set the tags that the run does not have yet: the origin of a training does not change."""
        self._store.log_batch(self.id, tags=[RunTag(k, v) for k, v in values.items() if k not in self._tags])

    def nest_below(self, run_id: str) -> None:
        """Show this run below another one in MLflow's list of runs."""
        self._store.set_tag(self.id, "mlflow.parentRunId", run_id)

    def trained_on(self, name: str, sha256: str) -> None:
        """Log the training data set, once."""
        digest = sha256[:36]  # MLflow's maximum length
        if not self._store.get_run(self.id).inputs.dataset_inputs:
            dataset = Dataset(name=name, digest=digest, source_type="local", source=name)
            self._store.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log this machine's CPU, memory and GPUs every ten seconds until the block ends.

        MLflow shows metrics below `system/` above all others, so these have another prefix.
        """
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # start and stop messages
        monitor = SystemMetricsMonitor(self.id)
        monitor.monitors = [m for m in monitor.monitors if not isinstance(m, DiskMonitor | NetworkMonitor)]
        # Private attributes: there is no public way to choose the prefix. tests/tracking/test_runs.py checks them.
        monitor._metrics_prefix = _MACHINE
        monitor._logging_step = monitor._get_next_logging_step(self.id)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def describe(self, text: str) -> None:
        """Set the description (Markdown) on the run's page."""
        self._store.set_tag(self.id, "mlflow.note.content", text)

    def file(self, path: Path, again: bool) -> None:
        """Log a file; a file that the run already has is replaced only if `again`."""
        if again or not self._has(path.name):
            self._store.log_artifact(self.id, str(path))

    def page(self, name: str, html: str) -> None:
        """Log an HTML page, and replace a page of that name."""
        self._store.log_text(self.id, html, name)

    def _has(self, name: str) -> bool:
        return any(found.path == name for found in self._store.list_artifacts(self.id))

    def _last(self, key: str) -> int:
        if key not in self._last_step:
            history = self._store.get_metric_history(self.id, key) if key in self._had else []
            self._last_step[key] = max((metric.step for metric in history), default=-1)
        return self._last_step[key]


@contextlib.contextmanager
def training_run(
    store: mlflow.MlflowClient,
    experiment_id: str,
    training_key: str,
    tags: Mapping[str, str],
    name: str = "",
    settle_seconds: float = 0.0,
) -> Iterator[TrainingRun]:
    """Yield the run of a training, open for writing: the existing one, or a new one with `name` and `tags`.

    Its status is RUNNING, with a heartbeat, until the block ends; then FINISHED, or FAILED after an exception.

    Args:
        store: the MLflow client.
        experiment_id: the experiment of the run.
        training_key: identifies the training.
        tags: tags of a new run.
        name: name of a new run, see `run_names.run_name` (default: the start of the training key).
        settle_seconds: how long to wait for runs that other machines create at the same time; all use the oldest.
    """
    process = {"host": socket.gethostname(), "process": process_identity.identity(), "heartbeat": f"{time.time():.0f}"}
    run = find_run(store, experiment_id, training_key)
    if run is None:
        who = {"mlflow.user": _user(), "mlflow.source.name": "python -m pipeline.finetune"}
        all_tags = {**who, **tags, TRAINING_KEY: training_key, **process}
        made = store.create_run(experiment_id, run_name=name or training_key[:8], tags=all_tags)
        time.sleep(settle_seconds)
        run = find_run(store, experiment_id, training_key) or made
        if run.info.run_id != made.info.run_id:
            store.delete_run(made.info.run_id)
    else:
        store.update_run(run.info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        for key, value in process.items():
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
