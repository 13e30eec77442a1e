"""The one door to MLflow: training runs, what they learned, and registered versions of the model.

A training has one run, found again by its tag `training_key`. SQLite in the workspace by default
(`mlflow.db`, artifacts in `mlartifacts/`); any server through `MLFLOW_TRACKING_URI`.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from PIL import Image

from pipeline import alive, paths
from pipeline.errors import ConfigError, TemporaryError
from pipeline.files import read_json

TRAINING_KEY = "training_key"
MODEL_SHA256 = "model_sha256"
TRAINED_ON = "training_pictures.txt"  # stands with a version: the pictures that it was trained on, see data/printed.py
RESTORED = "restored"  # the run was made from the files of a training that this server never saw

_HEARTBEAT_SECONDS = 60
_DEAD_AFTER_SECONDS = 15 * _HEARTBEAT_SECONDS
_LOCK_SECONDS = 120
_SQLITE = "sqlite:///"
_LOGGED = "model"  # the name of what is logged
_DAY = 24 * 3600  # seconds
_MODEL = "models:/"
_TEST = "test/"  # begins the names of test figures
_FAILURES = (MlflowException, OSError)  # what an MLflow store that can't be reached raises


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
    except _FAILURES as error:
        raise _unreachable(error) from None


def uri() -> str:
    """The address of the store in use."""
    return str(mlflow.get_tracking_uri())


def _home() -> Path:
    """The folder of our own SQLite file, in which the artifacts lie too; else the current one."""
    return Path(uri().removeprefix(_SQLITE)).parent if uri().startswith(_SQLITE) else Path()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unreachable(error: Exception) -> TemporaryError:
    return TemporaryError(
        f"MLflow at {uri()} can't be used ({_first_line(error)}); start that server or"
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
            dead = not alive.is_alive(tags["process"])
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
    beating = {"host": socket.gethostname(), "process": alive.identity(), "heartbeat": f"{time.time():.0f}"}
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
            with contextlib.suppress(*_FAILURES):
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
        except (*_FAILURES, TemporaryError) as error:
            self._run = None
            print(
                f"finetune: no live curves: {_first_line(error)} (training goes on; `register` will log them)",
                file=sys.stderr,
            )


@dataclass(frozen=True)
class Version:
    """A registered version of the model."""

    number: int
    tags: dict[str, str]


def find_version(store: mlflow.MlflowClient, model: str, model_sha256: str) -> Version | None:
    """The registered version that has exactly these weights, if there is one."""
    found = store.search_model_versions(f"name = '{model}' and tags.{MODEL_SHA256} = '{model_sha256}'")
    ready = [Version(int(version.version), dict(version.tags)) for version in found if version.status == "READY"]
    return max(ready, key=lambda version: version.number, default=None)


def versions(store: mlflow.MlflowClient, model: str) -> list[int]:
    """The numbers of all registered versions of the model, in order."""
    return [version.number for version in versions_with_tags(store, model)]


def versions_with_tags(store: mlflow.MlflowClient, model: str) -> list[Version]:
    """All registered versions of the model, in order."""
    found = [Version(int(version.version), dict(version.tags)) for version in _search_versions(store, model)]
    return sorted(found, key=lambda version: version.number)


def _search_versions(store: mlflow.MlflowClient, model: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token = None
    while True:
        page = store.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def version_of_alias(store: mlflow.MlflowClient, model: str, alias: str) -> int | None:
    """The number of the version that an alias names, if there is one."""
    try:
        return int(store.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def run_of(store: mlflow.MlflowClient, model: str, version: int) -> Run:
    """The run that a registered version came from."""
    return store.get_run(store.get_model_version(model, str(version)).run_id)


@dataclass(frozen=True)
class Figures:
    """The test figures of a run.

    Attributes:
        metrics: of the model alone, not of what it was compared with.
        test_sha256: of the test split that they were measured on, where the run tells.
    """

    metrics: dict[str, float]
    test_sha256: str | None


def figures(store: mlflow.MlflowClient, run: Run) -> Figures:
    """What a run tells of its test figures."""
    test_sha256 = None
    if paths.EVALUATE_REPORT.name in {file.path for file in store.list_artifacts(run.info.run_id)}:
        with contextlib.suppress(*_FAILURES, ValueError):
            file = store.download_artifacts(run.info.run_id, paths.EVALUATE_REPORT.name)
            test_sha256 = read_json(Path(file)).get("test_sha256")
    metrics = {
        key.removeprefix(_TEST): value
        for key, value in sorted(run.data.metrics.items())
        if key.startswith(_TEST) and "/" not in key.removeprefix(_TEST)
    }
    return Figures(metrics, test_sha256)


def aliased(store: mlflow.MlflowClient, model: str) -> set[int]:
    """The numbers of the versions that some alias names; none where there is no such model."""
    try:
        return {int(version) for version in store.get_registered_model(model).aliases.values()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return set()
        raise


def delete_version(store: mlflow.MlflowClient, model: str, version: int) -> None:
    """Delete a registered version, its logged model, and the files of its run where no other version has the same.

    The run stays, with params, curves and figures.
    """
    gone = store.get_model_version(model, str(version))
    store.delete_model_version(model, str(version))  # first: cut off here, it leaves files, and no version without any
    others = _search_versions(store, model)
    model_id = _model_id(gone)
    if model_id and model_id not in map(_model_id, others):
        _delete_logged_model(store, model_id)
    if gone.run_id and gone.run_id not in {other.run_id for other in others}:
        get_artifact_repository(store.get_run(gone.run_id).info.artifact_uri).delete_artifacts()


def delete_orphaned_models(store: mlflow.MlflowClient, experiment_id: str, model: str) -> int:
    """Delete the models that trainings of ours logged and no version has, if they are a day old; gives their number.

    A registration that was killed leaves one.
    """
    used = set(map(_model_id, _search_versions(store, model)))
    yesterday = (time.time() - _DAY) * 1000
    found = []
    token = None
    while True:
        page = store.search_logged_models([experiment_id], page_token=token)
        found += [logged for logged in page if logged.name == _LOGGED and logged.creation_timestamp < yesterday]
        token = page.token
        if not token:
            break
    orphans = [
        logged
        for logged in found
        if logged.model_id not in used and TRAINING_KEY in store.get_run(logged.source_run_id).data.tags
    ]
    for logged in orphans:
        _delete_logged_model(store, logged.model_id)
    return len(orphans)


def _model_id(version: ModelVersion) -> str | None:
    """The logged model that a version is; MLflow's SQL store keeps it in the version's source only."""
    source = str(version.source or "")
    return version.model_id or (source.removeprefix(_MODEL) if source.startswith(_MODEL) else None)


def _delete_logged_model(store: mlflow.MlflowClient, model_id: str) -> None:
    place = store.get_logged_model(model_id).artifact_location
    store.delete_logged_model(model_id)
    get_artifact_repository(place).delete_artifacts()


def training_pictures(model: str, version: int) -> Path | None:
    """The list of pictures that a version was trained on; None where the version does not tell."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}/artifacts/{TRAINED_ON}"))
    except _FAILURES:
        return None


def log_model(
    run: TrainingRun,
    *,
    code: Path,
    served: Path,
    artifacts: Mapping[str, Path],
    example: str,
    requirements: Sequence[str],
) -> str:
    """Log the fine-tuned model as a `pyfunc` (models from code) beside the run; returns its URI.

    Args:
        code: the package that the model takes along, so that it is served without this repository.
        served: the file that defines the model.
        artifacts: files and folders that it finds in its context, by name.
        example: a picture as a data: URL, for the input example.
        requirements: pinned, as pip reads them.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),  # bytes in Python; over HTTP base64 or a data: URL
        outputs=Schema([ColSpec("string", "caption"), ColSpec("string", "error")]),
        params=ParamSchema([ParamSpec("beams", "integer", 3)]),
    )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with mlflow.start_run(run_id=run.id):
        info = mlflow.pyfunc.log_model(
            name=_LOGGED,
            python_model=str(served),
            code_paths=[str(code)],
            artifacts={name: str(path) for name, path in artifacts.items()},
            signature=signature,
            input_example={"image": [example]},
            pip_requirements=list(requirements),
        )
    return str(info.model_uri)


def register(
    store: mlflow.MlflowClient, run: TrainingRun, model: str, uri: str, tags: Mapping[str, str], description: str
) -> int:
    """Register a logged model as a new version of `model`; returns the version's number."""
    with contextlib.suppress(MlflowException):  # it is there already
        store.create_registered_model(model, description="Captions pictures; fine-tuned from a GIT checkpoint.")
    version = store.create_model_version(
        model,
        source=uri,
        run_id=run.id,
        tags=dict(tags),
        description=description,
        model_id=uri.removeprefix("models:/"),
    )
    return int(version.version)


def checkpoint_of(model: str) -> Path:
    """The checkpoint's folder of a registered model, downloaded where it is not on this machine.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/NAME` for the newest version.

    Raises:
        ConfigError: the registry has no such model.
        TemporaryError: the registry can't be reached.
    """
    store = client()
    name = model.removeprefix("models:/")
    try:
        if "@" not in name and "/" not in name:
            numbers = versions(store, name)
            if not numbers:
                raise ConfigError(f"{model}: has no version in MLflow; run `dvc repro`, or `make register` if you did")
            model = f"models:/{name}/{numbers[-1]}"
        folder = mlflow.artifacts.download_artifacts(f"{model}/artifacts/{paths.MODEL.name}")
    except MlflowException as error:
        raise ConfigError(
            f"{model}: not to be had from MLflow at {uri()} ({_first_line(error)});"
            " `make ui` shows the versions and aliases that there are"
        ) from None
    return Path(folder)
