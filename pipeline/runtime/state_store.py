"""The folder of a training's states: the newest two, and the checkpoint of the best epoch so far."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runtime.atomic_files import PARTIAL, remove
from pipeline.runtime.checksummed import checksummed_folder, is_intact

_KEPT = 2  # if the newest is damaged, the one before it is used


class StateStore:
    """A folder with the states of one training."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def best(self) -> Path:
        """The folder of the checkpoint of the best epoch so far."""
        return self._folder / "best"

    def newest(self) -> Path | None:
        """Return the newest undamaged state, or None."""
        return next((folder for folder in self._folders() if is_intact(folder)), None)

    def roll_back_to(self, state: Path | None) -> list[Path]:
        """Restore the best checkpoint as it was at a state; remove later states and return their folders."""
        for partial in self._folder.glob(f".*{PARTIAL}"):
            remove(partial)
        later = [folder for folder in self._folders() if state is None or folder.name > state.name]
        for folder in [*later, self.best]:
            remove(folder)
        if state and (state / self.best.name).exists():
            shutil.copytree(state / self.best.name, self.best)
        return later

    def write(self, step: int, fill: Callable[[Path], None], size: int) -> None:
        """Write the state after a step unless it exists, and remove all but the newest two.

        Args:
            step: optimizer steps taken.
            fill: writes the state's files into a folder.
            size: size of these files, in bytes.

        Raises:
            OSError: not enough disk space; nothing was written.
        """
        folder = self._folder / f"step-{step:09}"
        if folder.exists():
            return
        self._check_room(size)
        with checksummed_folder(folder) as place:
            fill(place)
            if self.best.exists():
                # A copy, not a link: damage to one file must not affect both states.
                shutil.copytree(self.best, place / self.best.name)
        for old in self._folders()[_KEPT:]:
            remove(old)

    @contextmanager
    def new_best(self) -> Iterator[Path]:
        """Yield a folder for the best epoch's checkpoint; it replaces the previous one when the block ends."""
        partial = self._folder / f".best{PARTIAL}"
        remove(partial)
        partial.mkdir(parents=True)
        yield partial
        remove(self.best)
        partial.rename(self.best)

    def _folders(self) -> list[Path]:
        """Return the states, the newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _check_room(self, size: int) -> None:
        best = sum(file.stat().st_size for file in self.best.rglob("*") if file.is_file())
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < 1.05 * (size + best):
            message = (
                f"No space left on device: a state needs {(size + best) / 1e6:,.0f} MB, {free / 1e6:,.0f} are free"
            )
            raise OSError(errno.ENOSPC, message, str(self._folder))
