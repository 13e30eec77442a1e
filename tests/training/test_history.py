from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from pipeline.training.history import EpochMetrics, best_by_cider, read_history, write_history


def epochs(*values: tuple[float, float], error: float = 0.2) -> list[EpochMetrics]:
    """Return epochs with these values of CIDEr-D and validation loss."""
    return [EpochMetrics(k, 1.0, loss, 1e-3, cider, error, 1.0) for k, (cider, loss) in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(1.0, 3.0)], 1),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], 3),
        ([(1.0, 3.0), (2.0, 2.0), (1.5, 1.0)], 2),  # clearly worse captions, whatever the loss
        ([(1.0, 3.0), (2.0, 2.0), (1.9, 1.0)], 3),  # about as good, and a lower loss
        ([(1.0, 3.0), (2.0, 2.0), (1.9, 2.5)], 2),  # about as good, and a higher loss
        ([(1.0, 3.0), (2.0, 2.0), (2.1, 2.5)], 2),  # within one standard error
        ([(1.0, 3.0), (2.0, 2.0), (2.3, 2.5)], 3),  # clearly better captions
        ([(2.0, 3.0), (1.85, 2.0), (1.7, 1.0)], 2),  # small steps down do not add up
        ([(2.0, 3.0), (1.85, 2.0), (2.1, 2.5)], 3),  # the second falls below one standard error of the new best
        ([(2.0, 1.0), (2.0, 1.0)], 1),
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5)], 2),
    ],
)
def test_the_lowest_loss_wins_within_one_standard_error_of_the_best_cider(
    values: list[tuple[float, float]], best: int
) -> None:
    history = epochs(*values)
    assert best_by_cider(history).epoch == best
    # After each epoch, either the previous choice or the new epoch is kept: no other weights are stored.
    kept = [best_by_cider(history[: k + 1]).epoch for k in range(len(history))]
    assert all(now in (before, k) for k, (before, now) in enumerate(itertools.pairwise(kept), start=2))


def test_a_history_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    written = [*epochs((1.0, 3.0), (2.0, 2.0)), EpochMetrics(3, 0.1, 0.2, 1e-4, math.nan, math.nan, math.nan)]
    write_history(tmp_path / "history.csv", written)
    read = read_history(tmp_path / "history.csv")
    assert read[:2] == written[:2]
    assert math.isnan(read[2].validation_cider)
    assert "epoch/validation_cider" not in read[2].metrics()
