"""MLflow's pages of the runs and registered models, on this machine only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import read_json, remove, swapped_in, write_json
from pipeline.runtime.local_server import LOOPBACK, LocalServer, free_port

PAGES = "IMAGE_CAPTIONING_MLFLOW_PAGES"  # environment: the address that the web page links to
_FIRST_PORT = 5000  # on macOS, AirPlay often has it
_LOG = paths.WORK / "mlflow-ui.log"
_PLACE = paths.WORK / "mlflow-ui.json"
# MLflow's jobs are not used here; without them and with one worker it takes 0.4 GB instead of 2.4.
_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def browse(params: Params, port: int | None = None) -> str:
    """Serve MLflow's pages until Ctrl-C, and return the last line to print.

    Args:
        params: all of params.yaml.
        port: None for the first free port from 5000.

    Raises:
        ConfigError: the port is taken, or MLflow is a server of its own.
        TemporaryError: the server does not start, or it ended by itself.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        from pipeline.tracking import runs

        address = runs.shown(uri)
        raise ConfigError(f"MLFLOW_TRACKING_URI: {address} has pages of its own; open that address in a browser")
    port = free_port(LOOPBACK, _FIRST_PORT, port)
    experiment_id = _experiment(params.register_.experiment)
    # Without the workflow in the address, MLflow opens its pages for language models.
    page = f"http://{LOOPBACK}:{port}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    print("ui: starting MLflow ...", flush=True)
    command = _command(uri or f"sqlite:///{Path('mlflow.db').absolute()}", port)
    server = LocalServer("MLflow's server", command, _LOG, _ENVIRONMENT)
    try:
        server.wait_until_it_answers(f"http://{LOOPBACK}:{port}/health")
        with _recorded(page):
            print(f"ui: {page}  (Ctrl-C ends it)", flush=True)
            server.watch()
    except KeyboardInterrupt:
        return "ended"
    finally:
        server.end()


def mlflow_pages() -> str | None:
    """Return the address of MLflow's pages: of its own server, or of `image-captioning ui` if that runs here.

    Behind a proxy, a browser reaches a server at another address than this process: IMAGE_CAPTIONING_MLFLOW_PAGES.
    """
    if pages := os.environ.get(PAGES):
        return pages
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        from pipeline.tracking import runs

        return runs.shown(os.environ["MLFLOW_TRACKING_URI"])
    if not _PLACE.is_file():
        return None
    record = read_json(_PLACE)
    return str(record["address"]) if process_identity.is_alive(record["process"]) else None


@contextmanager
def _recorded(address: str) -> Iterator[None]:
    """Record the address for the web page while MLflow's server runs."""
    with swapped_in(_PLACE) as (place,):
        write_json(place, {"address": address, "process": process_identity.identity()})
    try:
        yield
    finally:
        remove(_PLACE)


def _experiment(name: str) -> str:
    """Return the id of the experiment. Creates the database: several processes at once would corrupt a new one."""
    from pipeline.tracking import runs

    with runs.reachable():
        return runs.experiment(runs.client(), name)


def _command(store: str, port: int) -> list[str]:
    return [
        *("mlflow", "server", "--backend-store-uri", store, "--host", LOOPBACK, "--port", f"{port}"),
        *("--workers", "1", "--uvicorn-opts", "--log-level warning"),
    ]
