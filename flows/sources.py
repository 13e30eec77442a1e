"""The sources of `ingest.sources` in the clone: where each comes from, and whether it has changed there."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.repo import in_words
from pipeline import paths
from pipeline.errors import DataError, TemporaryError
from pipeline.params import Params

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
        (there,) = self.stage.deps
        status = there.status()
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
        from aiohttp import ClientError
        from dvc.exceptions import DvcException

        try:
            repo.update([self.addressing])
        except (DvcException, ClientError, TimeoutError, OSError) as error:
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
        """Whether its content is another one than that of the clone."""
        from dvc.dependency import loads_from

        if self.stage is None:
            return True
        (there,) = loads_from(self.stage, [str(self.folder)])
        return bool(there.get_hash() != self.stage.outs[0].hash_info)

    def fetch(self, repo: Repo) -> None:
        """Bring it as it is now, once nobody has written into it for some seconds.

        Raises:
            TemporaryError: somebody goes on writing into it.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (wait := _newest(self.folder) + _QUIET_SECONDS - time.time()) > 0:
            if time.monotonic() > deadline:
                raise TemporaryError(f"{self.folder}: is being written to; run again when that has ended")
            time.sleep(min(wait, _QUIET_SECONDS))
        repo.add(str(self.folder), out=str(paths.RAW / self.name), force=True)


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
        if folder.is_dir() and (brought or not place.exists()):
            yield Local(name, folder, f"{paths.RAW / name}.dvc", brought[0] if brought else None)
        elif not brought and not place.exists():
            raise DataError(f"{folder}: not found; put the archive there, or remove {name} from ingest.sources")


def _newest(folder: Path) -> float:
    """When something in a folder was last written, in seconds."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
