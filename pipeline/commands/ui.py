"""Browse the runs and the registered models: MLflow's own page, on this machine only."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint


def run(params: Params, args: argparse.Namespace) -> str:
    """Become MLflow's server; does not return."""
    from pipeline.tracking import runs

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        raise ConfigError(f"MLFLOW_TRACKING_URI: is {uri}, a server of its own; open that address in a browser")
    # This makes the database first: several processes at once would corrupt a new one.
    experiment_id = runs.experiment(runs.client(), params.register_.experiment)
    store = uri or f"sqlite:///{Path('mlflow.db').absolute()}"
    # Without the workflow in the address, MLflow opens on pages for conversations with language models.
    page = f"http://127.0.0.1:{args.port}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    print(f"ui: {page}  (Ctrl-C ends it)", flush=True)
    # MLflow's jobs are not used here; without them and with one worker it takes 0.4 GB instead of 2.4.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = ["mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(args.port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")


if __name__ == "__main__":
    entrypoint.main("ui", run, _arguments)
