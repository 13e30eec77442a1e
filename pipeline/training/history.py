"""The history of a training: metrics of each epoch, from `finetune` to `register` and `dvc plots`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of an epoch.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean over its steps, nats per token.
        validation_loss: at its end, nats per token.
        learning_rate: at its end.
        validation_cider: CIDEr-D of generated captions of validation pictures; NaN if none were generated.
        validation_cider_error: standard error of that mean over the pictures.
        distinct_captions: share of these captions that differ from each other.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    validation_cider: float
    validation_cider_error: float
    distinct_captions: float

    def metrics(self) -> dict[str, float]:
        """Return the metrics under the names that MLflow shows."""
        values = {f"epoch/{name}": value for name, value in vars(self).items() if name != "epoch"}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def log_line(self, epochs: int, stage: str) -> str:
        """Return a line for the log."""
        line = f"{stage}: epoch {self.epoch:3}/{epochs}  train loss {self.train_loss:.4f}"
        line += f"  validation loss {self.validation_loss:.4f}"
        if not math.isnan(self.validation_cider):
            line += f"  CIDEr-D {self.validation_cider:.3f}  distinct captions {self.distinct_captions:.0%}"
        return line


def best_by_cider(epochs: Sequence[EpochMetrics]) -> EpochMetrics:
    """Return the epoch to keep: among those about as good as the best by CIDEr-D, the one with the lowest loss.

    About as good means within one standard error of the best (Breiman et al. 1984, "Classification and Regression
    Trees", 3.4.3): the highest of many noisy means is mostly luck. The decision is made at the end of each epoch,
    because only the kept epoch's weights are stored: if both are as good as the best so far, the lower loss wins; a
    kept epoch that no longer is as good is replaced.
    """
    kept = top = epochs[0]
    for epoch in epochs[1:]:
        top = max(top, epoch, key=lambda e: e.validation_cider)
        enough = top.validation_cider - top.validation_cider_error
        is_lower = epoch.validation_loss < kept.validation_loss
        if epoch.validation_cider >= enough and (is_lower or kept.validation_cider < enough):
            kept = epoch
    return kept


_COLUMNS = [field.name for field in fields(EpochMetrics)]


def write_history(path: Path, epochs: Sequence[EpochMetrics]) -> None:
    """Write the epochs as CSV, one row each."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(epoch, column) for column in _COLUMNS] for epoch in epochs)


def read_history(path: Path) -> list[EpochMetrics]:
    """Read a file that `write_history` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            EpochMetrics(int(row["epoch"]), *(float(row[column]) for column in _COLUMNS[1:]))
            for row in csv.DictReader(file)
        ]
