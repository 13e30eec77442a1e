"""The curve of a training: what each epoch came to, from `finetune` to `register` and `dvc plots`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: mean losses in nats a token, and the learning rate at its end."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float

    def metrics(self) -> dict[str, float]:
        """The figures under the names that MLflow shows."""
        return {
            "epoch/train_loss": self.train_loss,
            "epoch/validation_loss": self.validation_loss,
            "epoch/learning_rate": self.learning_rate,
        }


_COLUMNS = [field.name for field in fields(Epoch)]


def write_curve(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write the epochs as CSV, a row each."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(epoch, column) for column in _COLUMNS] for epoch in epochs)


def read_curve(path: Path) -> list[Epoch]:
    """Read what `write_curve` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Epoch(int(row["epoch"]), *(float(row[column]) for column in _COLUMNS[1:])) for row in csv.DictReader(file)
        ]
