"""Measured durations of trainings, by their training keys.

They differ from run to run, so they are kept in `.work` and not among the outputs of a stage, which are reproducible.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import paths
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json


def write(training_key: str, seconds: float) -> None:
    """Note how long a training took."""
    with swapped_in(_file(training_key)) as (place,):
        write_json(place, {"training_seconds": round(seconds, 1)})


def read(training_key: str) -> float | None:
    """Return how long a training took on this machine, in seconds; None if it is not known."""
    try:
        return float(read_json(_file(training_key))["training_seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # it was trained elsewhere, or the file is damaged
        return None


def _file(training_key: str) -> Path:
    return paths.COSTS / f"{training_key[:32]}.json"
