"""The part of ingest that may run on another machine: from a picture's raw bytes to the normalised picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data import images
from pipeline.data.images import Normalised
from pipeline.runtime.memory_budget import MemoryBudget, return_large_blocks


@dataclass(frozen=True)
class Normaliser:
    """Makes the work of ingest; it can be pickled.

    Attributes:
        image_size, max_pixels: see `images.normalise`.
        memory: bytes for decoded pictures, shared by the threads of a process.
    """

    image_size: int
    max_pixels: int
    memory: int

    def __call__(self) -> Callable[[Sequence[bytes]], list[Normalised | str]]:
        """Return the work: raw bytes -> normalised pictures, or the reasons why they cannot be used."""
        return_large_blocks()
        budget = MemoryBudget(self.memory)

        def normalise(data: bytes) -> Normalised | str:
            try:
                return images.normalise(data, self.image_size, self.max_pixels, budget)
            except images.PictureError as error:
                return error.reason

        return lambda batch: [normalise(data) for data in batch]
