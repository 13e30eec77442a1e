"""The history of a training: metrics of each epoch, from `finetune` to `register` and `dvc plots`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

_WORSE = 0.05  # how much the share of unfinished captions, or of loops, may rise


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
        unfinished: share of these captions that break off; NaN without self-critical training, as what follows.
        loops: share of these captions that repeat themselves.
        reward: mean reward of the captions that were sampled; NaN for epochs with cross-entropy only.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    validation_cider: float
    validation_cider_error: float
    distinct_captions: float
    unfinished: float = math.nan
    loops: float = math.nan
    reward: float = math.nan

    @property
    def is_self_critical(self) -> bool:
        """Whether the epoch trained on sampled captions."""
        return not math.isnan(self.reward)

    def metrics(self) -> dict[str, float]:
        """Return the metrics under the names that MLflow shows."""
        values = {f"epoch/{name}": value for name, value in vars(self).items() if name != "epoch"}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def log_line(self, epochs: int) -> str:
        """Return a line for the log."""
        line = f"epoch {self.epoch:3}/{epochs}  train loss {self.train_loss:.4f}"
        line += f"  validation loss {self.validation_loss:.4f}"
        if self.is_self_critical:
            line += f"  reward {self.reward:.3f}"
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


def kept_epoch(
    epochs: Sequence[EpochMetrics], cross_entropy: int, by_cider: bool, least_distinct: float
) -> EpochMetrics:
    """Return the epoch to keep, the first of equal ones.

    Of the epochs with cross-entropy it is the best by CIDEr-D (see `best_by_cider`) or by loss. A self-critical epoch
    without flaws replaces it if its CIDEr-D is higher; its loss says nothing, because it trains on something else.

    Args:
        epochs: all epochs.
        cross_entropy: number of epochs before self-critical training; 0 if that has not begun.
        by_cider: whether CIDEr-D decides.
        least_distinct: see `flaws`.
    """
    before = epochs[: cross_entropy or None]
    best = best_by_cider(before) if by_cider else min(before, key=lambda epoch: epoch.validation_loss)
    sound = [epoch for epoch in epochs[len(before) :] if not flaws(epoch, best, least_distinct)]
    return max([best, *sound], key=lambda epoch: epoch.validation_cider)


def flaws(epoch: EpochMetrics, before: EpochMetrics, least_distinct: float) -> str:
    """Return in words which figures of a self-critical epoch's captions are too bad, or nothing.

    Args:
        epoch: the epoch.
        before: the epoch that self-critical training started from.
        least_distinct: fraction of distinct captions, of that before.
    """
    distinct, then = epoch.distinct_captions, before.distinct_captions
    found = [f"distinct captions {distinct:.0%}, before {then:.0%}"] if distinct < least_distinct * then else []
    for name in ("unfinished", "loops"):
        share, then = getattr(epoch, name), getattr(before, name)
        if share > then + _WORSE:
            found.append(f"{name} {share:.0%}, before {then:.0%}")
    return "; ".join(found)


_OPTIONAL = ("unfinished", "loops", "reward")  # columns of self-critical training
_COLUMNS = [field.name for field in fields(EpochMetrics) if field.name not in _OPTIONAL]


def write_history(path: Path, epochs: Sequence[EpochMetrics]) -> None:
    """Write the epochs as CSV, one row each; columns of self-critical training only if it took place."""
    columns = [*_COLUMNS, *(_OPTIONAL if any(epoch.is_self_critical for epoch in epochs) else ())]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([getattr(epoch, column) for column in columns] for epoch in epochs)


def read_history(path: Path) -> list[EpochMetrics]:
    """Read a file that `write_history` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            EpochMetrics(int(row.pop("epoch")), **{column: float(value) for column, value in row.items()})
            for row in csv.DictReader(file)
        ]
