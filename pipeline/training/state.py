"""The states of one training on the disk: the newest two, and the checkpoint of the best epoch so far beside them."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runtime.atomic_files import PARTIAL, remove
from pipeline.runtime.checksummed import is_whole, sealing

_KEPT = 2  # should the newest be damaged, there is one before it


class States:
    """The states of a training in a folder; of no other training's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self._folder / "best"

    def newest(self) -> Path | None:
        """The newest state that is whole, if there is one."""
        return next((folder for folder in self._found() if is_whole(folder)), None)

    def go_back_to(self, state: Path | None) -> list[Path]:
        """Put the best checkpoint back as it was at a state; remove the states after it, and give them."""
        for cut_off in self._folder.glob(f".*{PARTIAL}"):
            remove(cut_off)
        later = [folder for folder in self._found() if state is None or folder.name > state.name]
        for folder in [*later, self.best]:
            remove(folder)
        if state and (state / self.best.name).exists():
            shutil.copytree(state / self.best.name, self.best)
        return later

    def write(self, step: int, fill: Callable[[Path], None], size: int) -> None:
        """Write the state after a step, unless it is there, and remove all but the newest.

        Args:
            step: of the optimizer.
            fill: writes the files of the state into a folder.
            size: of these files, in bytes.

        Raises:
            OSError: the disk has no room for it; nothing was begun.
        """
        folder = self._folder / f"step-{step:09}"
        if folder.exists():
            return
        self._check_room(size)
        with sealing(folder) as place:
            fill(place)
            if self.best.exists():
                # A copy and no link: what damages one file must not damage it in both states.
                shutil.copytree(self.best, place / self.best.name)
        for old in self._found()[_KEPT:]:
            remove(old)

    @contextmanager
    def new_best(self) -> Iterator[Path]:
        """Give a place for the best epoch's checkpoint, which takes the place of the last one when the block ends."""
        place = self._folder / f".best{PARTIAL}"
        remove(place)
        place.mkdir(parents=True)
        yield place
        remove(self.best)
        place.rename(self.best)

    def _found(self) -> list[Path]:
        """The states, the newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)

    def _check_room(self, size: int) -> None:
        best = sum(file.stat().st_size for file in self.best.rglob("*") if file.is_file())
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < 1.05 * (size + best):
            words = f"No space left on device: a state needs {(size + best) / 1e6:,.0f} MB, {free / 1e6:,.0f} are free"
            raise OSError(errno.ENOSPC, words, str(self._folder))
