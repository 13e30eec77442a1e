"""The sources in `ingest.sources` of the clone: their origins, and whether they have changed there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.workspace.dvc_repo import in_words
from flows.workspace.git import git
from pipeline.config import paths
from pipeline.config.errors import DataError, TemporaryError
from pipeline.config.params import Params
from pipeline.runtime.atomic_files import remove

if TYPE_CHECKING:
    from dvc.repo import Repo

_QUIET_SECONDS = 5.0  # a folder without writes for this long is complete
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Imported:
    """A file or folder imported with `dvc import-url` or `dvc import`; `addressing` is the path of its `.dvc` file."""

    name: str
    addressing: str
    stage: Any

    def has_changed(self) -> bool:
        """Return whether the source has changed at its origin, without downloading it.

        Raises:
            TemporaryError: the origin does not exist or is unreachable.
        """
        from dvc.exceptions import DvcException

        (there,) = self.stage.deps
        try:
            with _whole(there.def_path):
                status = there.status()
        except (DvcException, TemporaryError):
            raise
        except Exception as error:  # each storage backend raises its own exceptions
            raise TemporaryError(
                f"{self.addressing}: {there.def_path} can't be asked ({type(error).__name__}: {error})"
            ) from None
        if "deleted" in status.values():
            raise TemporaryError(
                f"{self.addressing}: {there.def_path} is not there or can't be reached; run again when it can, or"
                f" remove {self.name} from ingest.sources"
            )
        return bool(status)

    def fetch(self, repo: Repo) -> None:
        """Fetch the current version.

        Raises:
            TemporaryError: the source can't be fetched completely.
        """
        try:
            repo.update([self.addressing])
        except Exception as error:  # each storage backend raises its own exceptions
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TemporaryError(
                f"{self.addressing}: {self.stage.deps[0].def_path} can't be fetched ({in_words(error)})"
            ) from None


@dataclass(frozen=True)
class Local:
    """A folder in the workspace that people edit in place."""

    name: str
    folder: Path
    addressing: str
    stage: Any | None

    def has_changed(self) -> bool:
        """Return whether the folder's content differs from the clone's version.

        Raises:
            TemporaryError: a file in the folder disappeared during the check.
        """
        from dvc.dependency import loads_from

        if self.stage is None:
            return True
        (there,) = loads_from(self.stage, [str(self.folder)])
        with _whole(self.folder):
            return bool(there.get_hash() != self.stage.outs[0].hash_info)

    def fetch(self, repo: Repo) -> None:
        """Fetch the current version after a few seconds without writes to the folder.

        Raises:
            TemporaryError: writes to the folder do not stop, or a file in it disappeared during the fetch.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (wait := _newest(self.folder) + _QUIET_SECONDS - time.time()) > 0:
            if time.monotonic() > deadline:
                raise TemporaryError(f"{self.folder}: is being written to; run again when that has ended")
            time.sleep(min(wait, _QUIET_SECONDS))
        place = paths.RAW / self.name
        if self.stage is None:
            remove(place)
        with _whole(self.folder):
            repo.add(str(self.folder), out=str(place), force=True)


Source = Imported | Local


def sources(repo: Repo, params: Params, workspace: Path) -> Iterator[Source]:
    """Yield the origins of the configured sources; a source may have several files, each with its own `.dvc` file.

    Raises:
        DataError: a source is neither tracked by DVC or git nor a folder in the workspace.
    """
    for name in params.ingest.sources:
        place = Path(repo.root_dir) / paths.RAW / name
        brought = [s for s in repo.index.stages if not s.cmd and Path(s.outs[0].fs_path).is_relative_to(place)]
        imported = [s for s in brought if s.is_import]
        for stage in imported:
            yield Imported(name, stage.addressing, stage)
        if imported:
            continue
        folder = workspace / paths.RAW / name
        # Files in the clone that neither DVC nor git tracks are left from an interrupted fetch.
        committed = not brought and bool(git("ls-files", "--", str(paths.RAW / name)))
        if folder.is_dir() and not committed:
            yield Local(name, folder, f"{paths.RAW / name}.dvc", brought[0] if brought else None)
        elif not brought and not committed:
            raise DataError(f"{folder}: not found; put the archive there, or remove {name} from ingest.sources")


def _newest(folder: Path) -> float:
    """Return when a folder was last written to, in seconds since 1970; ignore files that disappear during the scan."""
    newest = folder.stat().st_mtime
    for parent, folders, files in os.walk(folder):  # rglob fails if a folder disappears
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                newest = max(newest, Path(parent, name).stat().st_mtime)
    return newest


@contextmanager
def _whole(place: Path | str) -> Iterator[None]:
    """Report in one line that a file disappeared before DVC read it.

    Raises:
        TemporaryError: a file disappeared.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise TemporaryError(
            f"{error.filename or error}: vanished while {place} was read, or is a link to nothing; run again when"
            " nobody writes there, or remove that link"
        ) from None
