"""Several processes that register the same weights at the same moment, round after round.

A process reads the names of models from its standard input, and registers the same weights under each. Every model has
an experiment of its own, which does not exist before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.config.errors import PipelineError
from pipeline.tracking import registration, registry, runs
from tests.conftest import ROOT, environment

_RESULT = "result: "


def registered(rounds: int, count: int, folder: Path, uri: str) -> list[tuple[str, list[int], list[str]]]:
    """Run the rounds; return per round the model's name, its versions afterwards, and what each process said."""
    processes = []
    for number in range(count):
        place = folder / f"registrar-{number}"
        place.mkdir()
        command = [sys.executable, "-m", "tests.tracking.registrars"]
        processes.append(
            subprocess.Popen(
                command,
                cwd=place,
                env=environment(PYTHONPATH=str(ROOT), MLFLOW_TRACKING_URI=uri, MLFLOW_DISABLE_TELEMETRY="true"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
    try:
        assert [_result(process) for process in processes] == ["ready"] * count
        results = []
        for number in range(rounds):
            model = f"model-{number}"
            for process in processes:
                assert process.stdin
                process.stdin.write(f"{model}\n")
            said = [_result(process) for process in processes]
            results.append((model, registry.versions(runs.client(), model), said))
        return results
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _result(process: subprocess.Popen[str]) -> str:
    """Return what the process reports next; MLflow prints lines of its own."""
    assert process.stdout
    return next(line for line in process.stdout if line.startswith(_RESULT)).removeprefix(_RESULT).strip()


def _register(model: str) -> str:
    try:
        with runs.reachable():
            store = runs.client()
            experiment = runs.experiment(store, model)
            with runs.training_run(store, experiment, model, {}, settle_seconds=1.0) as run:
                sha256 = f"sha of {model}"
                if found := registry.find_version(store, model, sha256):
                    return f"found {found.number}"
                logged = store.create_logged_model(experiment, name=registry.LOGGED, source_run_id=run.id)
                store.finalize_logged_model(logged.model_id, "READY")
                tags = {registry.MODEL_SHA256: sha256}
                number = registration.register(store, run, model, f"models:/{logged.model_id}", tags, "")
                return f"made {number}"
    except PipelineError as error:
        return f"failed: {error}"


if __name__ == "__main__":
    runs.client()
    print(f"{_RESULT}ready", flush=True)
    for line in sys.stdin:
        print(f"{_RESULT}{_register(line.strip())}", flush=True)
