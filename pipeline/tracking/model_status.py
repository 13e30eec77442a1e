"""Status of this workspace's model in MLflow: version, run and test scores, compared with the champion's."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.entrypoint import Done
from pipeline.tracking import registry


def run(params: Params, args: argparse.Namespace) -> Done:
    """Look up the model in MLflow. The result has its version, run and metrics, and the champion's version and metrics.

    Raises:
        DataError: the model is not registered.
    """
    from pipeline.tracking import runs

    if not paths.REGISTER_REPORT.is_file():
        raise DataError(f"{paths.REGISTER_REPORT}: not found; run `dvc repro` first")
    registered = read_json(paths.REGISTER_REPORT)
    name = registered["model"]
    with runs.reachable():
        store = runs.client()
        experiment_id = runs.experiment(store, params.register_.experiment)
        version = registry.find_version(store, name, registered["model_sha256"])
        training = runs.find_run(store, experiment_id, registered["training_key"])
        if version is None or training is None:
            raise DataError(f"{name}: the registry does not have the model of {paths.MODEL}; run `make register`")
        mine = registry.figures(store, training)
        number = registry.champion(store, name)
        best = registry.figures(store, registry.run_of(store, name, number)) if number else None
    champion: dict[str, Any] | None = None
    if best and number != version.number:
        same = best.test_sha256 is not None and best.test_sha256 == mine.test_sha256
        champion = {"version": number, "metrics": best.metrics, "same_test": same}
    status = {
        "model": name,
        "version": version.number,
        "tracking_uri": runs.shown(runs.uri()),
        "experiment_id": experiment_id,
        "run_id": training.info.run_id,
        "run_name": training.info.run_name,
        "metrics": mine.metrics,
        "champion": champion,
    }
    beside = f" beside the champion, version {number}" if champion else ""
    return Done(f"models:/{name}/{version.number}, run {training.info.run_name}{beside}", status)


if __name__ == "__main__":
    entrypoint.main("model_status", run)
