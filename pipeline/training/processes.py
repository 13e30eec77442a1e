"""The processes of a distributed training: a thin layer over `accelerate`."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


class Processes:
    """The current process, and collective operations over all processes of a training."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.world == 1:
            return value
        total = self.accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device))
        return float(total)

    def any(self, value: bool) -> bool:
        """Return whether the value is true in at least one process; all processes get the same answer."""
        return self.sum(float(value)) > 0

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, by rank."""
        gathered: list[Any] = gather_object(items)
        return gathered

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        self.accelerator.wait_for_everyone()
