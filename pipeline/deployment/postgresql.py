"""PostgreSQL's programs: create and start a server of this machine, dump a database, and restore it.

A database's address is a URL as in MLflow and Prefect: `postgresql+DRIVER://USER:PASSWORD@HOST:PORT/NAME`. Passwords
are passed in the environment, where other users of the machine can't see them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime.local_server import LOOPBACK, LocalServer

_DEBIAN = Path("/usr/lib/postgresql")  # PROGRAMS are in VERSION/bin
_SUPERUSER = "captioning"
_ACCOUNT = "postgres"  # PostgreSQL refuses to run as root
_FAST = signal.SIGINT  # the shutdown that does not wait for clients


@dataclass(frozen=True)
class Database:
    """A database on a server."""

    host: str
    port: int
    name: str
    user: str
    password: str

    @classmethod
    def at(cls, url: str) -> Database | None:
        """Return the database at a URL; None if the URL is not PostgreSQL's."""
        parts = urlsplit(url)
        if not parts.scheme.startswith("postgres"):
            return None
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.hostname or LOOPBACK, parts.port or 5432, unquote(parts.path.strip("/")), user, password)

    def url(self, driver: str) -> str:
        """Return the URL for a driver of SQLAlchemy."""
        return f"postgresql+{driver}://{self.user}:{self.password}@{self.host}:{self.port}/{self.name}"

    @property
    def shown(self) -> str:
        """Return the address without user and password."""
        return f"postgresql://{self.host}:{self.port}/{self.name}"


def is_answering(database: Database) -> bool:
    """Return whether the server accepts connections."""
    words = ["--host", database.host, "--port", f"{database.port}", "--quiet"]
    return subprocess.run([_program("pg_isready"), *words], check=False).returncode == 0


def create(database: Database) -> None:
    """Create an empty database on the server if it does not exist."""
    server = Database(database.host, database.port, "postgres", database.user, database.password)
    if not _query(server, f"SELECT 1 FROM pg_database WHERE datname = '{database.name}'"):  # noqa: S608 - our own name
        _query(server, f"CREATE DATABASE {database.name}")


def is_empty(database: Database) -> bool:
    """Return whether the database has no tables."""
    return _query(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"


def dump(database: Database, file: Path) -> None:
    """Write a consistent dump (PostgreSQL's custom format) while the server works.

    Raises:
        TemporaryError: the database can't be read.
    """
    _run(database, "pg_dump", "--format", "custom", "--no-owner", "--file", str(file))


def restore(database: Database, file: Path) -> None:
    """Restore a dump into an empty database, as one transaction.

    Raises:
        TemporaryError: the database can't be written.
    """
    words = ["--exit-on-error", "--single-transaction", "--no-owner", "--dbname", database.name, str(file)]
    _run(database, "pg_restore", *words)


def _query(database: Database, statement: str) -> str:
    words = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", statement]
    return _run(database, "psql", *words).strip()


def _run(database: Database, program: str, *words: str) -> str:
    environment = {
        **os.environ,
        "PGHOST": database.host,
        "PGPORT": f"{database.port}",
        "PGUSER": database.user,
        "PGPASSWORD": database.password,
        "PGDATABASE": database.name,
        "PGCONNECT_TIMEOUT": "20",
    }
    done = subprocess.run([_program(program), *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        why = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise TemporaryError(f"{database.shown}: {why}; start that server or mend its address, then run it again")
    return done.stdout


def _program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs: of the newest version, as an older one can't read its dumps.

    Raises:
        ConfigError: PostgreSQL is not installed.
    """
    found = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parents[1].name))
    if found:
        return str(found[-1])
    if path := shutil.which(name):
        return path
    raise ConfigError(
        f"{name}: not found; install PostgreSQL (Debian: `apt-get install postgresql`; macOS: `brew install"
        " postgresql`)"
    )


class LocalPostgreSQL:
    """A server on loopback, whose data are in a folder.

    Args:
        folder: created at the first start.
        port: of the server.
        password: of its superuser.
    """

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self._folder = folder.absolute()
        self._port, self._password = port, password

    def database(self, name: str) -> Database:
        """Return the address of a database on this server."""
        return Database(LOOPBACK, self._port, name, _SUPERUSER, self._password)

    def start(self, log: Path) -> LocalServer:
        """Start the server, and create its data at the first start.

        Raises:
            ConfigError: PostgreSQL is not installed, or its account can't reach the folder.
            TemporaryError: the server does not start.
        """
        program = _program("postgres")
        data = self._folder / "data"
        if not (data / "PG_VERSION").is_file():
            self._create(data)
        elif not re.search(rf"\) {(data / 'PG_VERSION').read_text().strip()}\b", _version(program)):
            raise ConfigError(
                f"{data}: was made by PostgreSQL {(data / 'PG_VERSION').read_text().strip()}, found"
                f" {_version(program)}; install that version, or restore a backup into an empty workspace"
            )
        words = ["-D", str(data), "-p", f"{self._port}", "-h", LOOPBACK, "-k", ""]
        # SIGINT ends it although clients are connected.
        server = LocalServer("PostgreSQL", words, log, {}, program=[*_as_account(), program], stop_signal=_FAST)
        try:
            server.wait_until(lambda: is_answering(self.database("postgres")))
        except BaseException:
            server.end()
            raise
        return server

    def _create(self, data: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        password = self._folder / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        words = ["-D", str(data), "-U", _SUPERUSER, "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
        try:
            if os.getuid() == 0:
                for path in (self._folder, password):
                    shutil.chown(path, _ACCOUNT)
            done = subprocess.run(
                [*_as_account(), _program("initdb"), *words, "--locale=C.UTF-8"],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
        except LookupError:
            raise ConfigError(
                f"root can't run PostgreSQL, and the account {_ACCOUNT} does not exist; install Debian's"
                " `postgresql`, or run this as another user"
            ) from None
        finally:
            password.unlink()
        if done.returncode:
            why = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
            raise ConfigError(f"{data}: initdb failed ({why}); let the account {_ACCOUNT} enter this folder's parents")


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _as_account() -> list[str]:
    """Return the words before a command that run it as PostgreSQL's account if this process is root's."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid", _ACCOUNT, "--regid", _ACCOUNT, "--clear-groups", "--pdeathsig", "INT"]
