"""Use a DVC repository in-process and translate DVC's exceptions to the pipeline's.

DVC is not thread-safe, and its operations can't be interrupted from outside. Therefore only small separate commands
(such as `flows.steps.commit_raw`) use this module, never the flow itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import DataError, TemporaryError
from pipeline.runtime import dvc_files

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage


@contextmanager
def opened(folder: Path = Path()) -> Iterator[Repo]:
    """Yield the repository in a folder.

    Raises:
        TemporaryError: another DVC process holds the lock, or a download or upload failed.
        DataError: another DVC operation failed.
    """
    from dvc.exceptions import DownloadError, DvcException, UploadError
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo
    except (LockError, DownloadError, UploadError) as error:
        raise TemporaryError(in_words(error)) from None
    except DvcException as error:
        hint = "; `image-captioning doctor` fixes this" if dvc_files.torn_data_files() else ""
        raise DataError(f"{in_words(error)}{hint}") from None


def used_stages(repo: Repo) -> list[Stage]:
    """Return the stages of `dvc.yaml` and the `.dvc` files that they depend on, in the order of `dvc repro`."""
    from dvc.repo.reproduce import plan_repro

    return list(plan_repro(repo.index.graph, [stage for stage in repo.index.stages if stage.cmd]))


def in_words(error: BaseException) -> str:
    """Return DVC's error message, including the messages of its causes."""
    words = []
    while error is not None:
        if (said := str(error)) and said not in words:
            words.append(said)
        error = error.__cause__  # type: ignore[assignment]
    return ": ".join(words)
