"""Record what the service captions, if `serving.watch` is on: hashes, features and captions, never the pictures.

`data/watch/YEAR-Wnn.jsonl` has one line per picture and ISO week (UTC). `drift.py` compares the weeks with the data
set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.sections.evaluate import Evaluate

if TYPE_CHECKING:
    import torch

FOLDER = Path("data/watch")
MOST = 5_000  # pictures of a week; the first ones are kept


@dataclass(frozen=True)
class Seen:
    """A picture that was captioned.

    Attributes:
        sha256: of the picture at the size of the model's input.
        model: name of the registered model.
        version: its version; None for a checkpoint that is not registered.
        caption: what the model said.
        score: mean log-likelihood of the caption per token.
        features: the encoder's features, averaged over the picture, `(hidden,)`.
        made_by: see `made_by`.
    """

    sha256: str
    model: str
    version: int | None
    caption: str
    score: float
    features: np.ndarray
    made_by: str = ""  # lines from before it was recorded


def made_by(weights: str | None, evaluate: Evaluate) -> str:
    """Return a key that changes with what decides captions and their scores; only equal ones are comparable.

    Args:
        weights: hash of the version's weights. A new registry may give its number to another model.
        evaluate: how it captions: `generation` and `decoding`.
    """
    deciding = [weights, evaluate.generation.model_dump(), evaluate.decoding.model_dump()]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]


class Recorder:
    """Appends to the file of the current week. Threads may share it; a lost line costs nothing."""

    def __init__(self, folder: Path = FOLDER, most: int = MOST) -> None:
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._week, self._known = "", set[str]()

    def record(self, seen: Sequence[Seen], now: datetime | None = None) -> None:
        """Append pictures that this week has not seen yet.

        Args:
            seen: the pictures.
            now: the time; None for the current one.
        """
        week = week_of(now or datetime.now(UTC))
        with self._lock:
            if week != self._week:
                self._week, self._known = week, {one.sha256 for one in read_week(self._folder / f"{week}.jsonl")}
            new = {one.sha256: one for one in seen if one.sha256 not in self._known}
            kept = list(new.values())[: max(0, self._most - len(self._known))]
            self._known |= {one.sha256 for one in kept}
            if kept:
                write(self._folder / f"{week}.jsonl", kept)


def write(file: Path, seen: Sequence[Seen]) -> None:
    """Append pictures to a file that `read_week` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(map(_line, seen)))


def week_of(time: datetime) -> str:
    """Return the ISO week of a time, like `2026-W48`."""
    year, week, _ = time.isocalendar()
    return f"{year}-W{week:02}"


def hash_of(prepared: torch.Tensor) -> str:
    """Return the hash of a picture at the size of the model's input, `(3, height, width)` uint8."""
    return hashlib.sha256(prepared.numpy().tobytes()).hexdigest()


def _line(one: Seen) -> str:
    features = base64.b64encode(one.features.astype(np.float16).tobytes()).decode()
    return json.dumps({**one.__dict__, "score": round(one.score, 5), "features": features}, ensure_ascii=False) + "\n"


def read_week(file: Path) -> list[Seen]:
    """Return the pictures of a week; lines that a crash cut off are left out."""
    found: list[Seen] = []
    if file.is_file():
        for line in file.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                read = json.loads(line)
                features = np.frombuffer(base64.b64decode(read["features"]), np.float16).astype(np.float32)
                found.append(Seen(**{**read, "features": features}))
    return found
