"""The sources of `ingest.sources` in the clone: where each comes from, and whether it has changed there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.workspace.clone import git
from flows.workspace.dvc_repo import in_words
from pipeline.config import paths
from pipeline.config.errors import DataError, TemporaryError
from pipeline.config.params import Params
from pipeline.runtime.atomic_files import remove

if TYPE_CHECKING:
    from dvc.repo import Repo

_QUIET_SECONDS = 5.0  # a folder in which nothing was written for so long is whole
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Imported:
    """A file or folder that `dvc import-url` (or `dvc import`) brought; `addressing` is the path of its `.dvc` file."""

    name: str
    addressing: str
    stage: Any

    def has_changed(self) -> bool:
        """Whether it is another one where it comes from; nothing is downloaded.

        Raises:
            TemporaryError: it is not there, or can't be reached.
        """
        from dvc.exceptions import DvcException

        (there,) = self.stage.deps
        try:
            with _whole(there.def_path):
                status = there.status()
        except (DvcException, TemporaryError):
            raise
        except Exception as error:  # each kind of storage has exceptions of its own
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
        """Bring it as it is now.

        Raises:
            TemporaryError: it can't be had whole.
        """
        try:
            repo.update([self.addressing])
        except Exception as error:  # each kind of storage has exceptions of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TemporaryError(
                f"{self.addressing}: {self.stage.deps[0].def_path} can't be fetched ({in_words(error)})"
            ) from None


@dataclass(frozen=True)
class Local:
    """A folder of the workspace, which people change where it lies."""

    name: str
    folder: Path
    addressing: str
    stage: Any | None

    def has_changed(self) -> bool:
        """Whether its content is another one than that of the clone.

        Raises:
            TemporaryError: a file of it vanished meanwhile.
        """
        from dvc.dependency import loads_from

        if self.stage is None:
            return True
        (there,) = loads_from(self.stage, [str(self.folder)])
        with _whole(self.folder):
            return bool(there.get_hash() != self.stage.outs[0].hash_info)

    def fetch(self, repo: Repo) -> None:
        """Bring it as it is now, once nobody has written into it for some seconds.

        Raises:
            TemporaryError: somebody goes on writing into it, or a file of it vanished meanwhile.
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
    """What the sources in use come from; one may have several files, each with a `.dvc` file.

    Raises:
        DataError: a source is neither tracked by DVC, nor in git, nor a folder of the workspace.
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
        # What lies there and neither DVC nor git knows, is a fetch that was cut off.
        committed = not brought and bool(git("ls-files", "--", str(paths.RAW / name)))
        if folder.is_dir() and not committed:
            yield Local(name, folder, f"{paths.RAW / name}.dvc", brought[0] if brought else None)
        elif not brought and not committed:
            raise DataError(f"{folder}: not found; put the archive there, or remove {name} from ingest.sources")


def _newest(folder: Path) -> float:
    """When something in a folder was last written, in seconds; what vanishes meanwhile does not count."""
    newest = folder.stat().st_mtime
    for parent, folders, files in os.walk(folder):  # rglob fails where a folder vanishes
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                newest = max(newest, Path(parent, name).stat().st_mtime)
    return newest


@contextmanager
def _whole(place: Path | str) -> Iterator[None]:
    """Have it told in one line that a file was gone when DVC came to read it.

    Raises:
        TemporaryError: one was.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise TemporaryError(
            f"{error.filename or error}: vanished while {place} was read, or is a link to nothing; run again when"
            " nobody writes there, or remove that link"
        ) from None
