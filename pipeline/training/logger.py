"""Where the metrics and captions of a training go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TrainingLogger(Protocol):
    """Receives the metrics and captions of a training."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics of a step or an epoch."""

    def samples(self, captions: Sequence[Sequence[str]], best_epoch: int) -> None:
        """Show captions of the first validation pictures, for each completed epoch; `best_epoch` is the kept one."""
