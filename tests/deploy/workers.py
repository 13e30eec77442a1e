"""A worker for the test of many runs: each run is a flow run of Prefect that registers a version with MLflow.

    python -m tests.deploy.workers 0 3 6 ...

Runs 2k and 2k+1 are of the same training, so they register the same weights.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from prefect import flow

from pipeline.config import paths
from pipeline.models.weights import weights_hash
from pipeline.tracking import registration, registry, runs

MODEL = "image-captioning"
BYTES = 65_536


def weights(training: int) -> bytes:
    return training.to_bytes(4, "big") * (BYTES // 4)


@flow(name="register", retries=5, retry_delay_seconds=2)
def register(number: int) -> int:
    training = number // 2
    store = runs.client()
    experiment = runs.experiment(store, MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        version = Path(temporary) / "version"
        checkpoint = version / "artifacts" / paths.MODEL.name
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(weights(training))
        sha256 = weights_hash(checkpoint)
        with runs.training_run(store, experiment, f"training {training}", {}, settle_seconds=1.0) as run:
            run.params({"training": training})
            run.describe("a smile 😍")  # a database of another encoding than UTF-8 refuses it
            run.metrics({"loss": 1 / (training + 1)})
            if found := registry.find_version(store, MODEL, sha256):
                return found.number
            logged = store.create_logged_model(experiment, name=registry.LOGGED, source_run_id=run.id)
            store.log_model_artifacts(logged.model_id, str(version))
            store.finalize_logged_model(logged.model_id, "READY")
            tags = {registry.MODEL_SHA256: sha256}
            return registration.register(store, run, MODEL, f"models:/{logged.model_id}", tags, "")


if __name__ == "__main__":
    for word in sys.argv[1:]:
        print(word, register(int(word)), flush=True)
