"""A DVC repository in-process; DVC's failures as ours.

DVC is not thread-safe, and what it does can't be interrupted from outside; so this is used by small commands of their
own (`flows.steps.commit_raw` and the like), never by the flow itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import DataError, TemporaryError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage


@contextmanager
def opened(folder: Path = Path()) -> Iterator[Repo]:
    """The repository in a folder.

    Raises:
        TemporaryError: another DVC is at work in it, or what lies elsewhere can't be had.
        DataError: DVC can't do with its files what it was asked to.
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
        raise DataError(in_words(error)) from None


def used_stages(repo: Repo) -> list[Stage]:
    """The stages of `dvc.yaml` and the `.dvc` files that they depend on, in the order in which `dvc repro` goes."""
    from dvc.repo.reproduce import plan_repro

    return list(plan_repro(repo.index.graph, [stage for stage in repo.index.stages if stage.cmd]))


def in_words(error: BaseException) -> str:
    """What DVC says, down to the cause."""
    words = []
    while error is not None:
        if (said := str(error)) and said not in words:
            words.append(said)
        error = error.__cause__  # type: ignore[assignment]
    return ": ".join(words)
