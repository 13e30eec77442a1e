"""Bulk captions by Ray's workers, one thread each: two against one, and one against generation alone.

CPU seconds of all processes, because other programs on the machine may take the second worker's core. With a free core
for each, two workers are 2 / ratio times as fast as one. Starting Ray and loading the model do not count.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
import torch

from benchmarks import Figure, UnavailableError
from benchmarks._checkpoints import GIT_DEMO
from benchmarks._workspace import ROOT
from benchmarks.serving import scenes
from pipeline.config import params
from pipeline.data.images import decode
from pipeline.engine.base import Read
from pipeline.engine.choice import open_engine
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import bytes_of
from pipeline.serving.bulk_work import Captioned, Captioning, Way

PICTURES = 640
ROUNDS = 3
BEAMS = 3


@dataclass(frozen=True)
class Cost:
    """Of a picture: CPU and wall seconds."""

    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{1000 * self.cpu:.1f} CPU ms, {1 / self.wall:.1f} pictures/s"


def figures() -> list[Figure]:
    """Measure generation alone, one worker and two workers in turn."""
    if find_spec("ray") is None:
        raise UnavailableError("needs Ray: pip install -e '.[ray]'")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    settings, pictures = params.load(ROOT / "params.yaml"), scenes(PICTURES)
    size = settings.runtime.caption_batch_size
    captioner = Captioner.from_folder(GIT_DEMO)
    prepared = [captioner.prepare(decode(data, 10**9)) for data in pictures]

    def generation() -> Cost:
        def batches() -> Iterator[int]:
            for first in range(0, PICTURES, size):
                batch = prepared[first : first + size]
                captioner.scored(batch, [0] * len(batch), count=1, beams=BEAMS, sampling=False)
                yield len(batch)

        return _cost(batches(), 1)

    def workers(count: int) -> Cost:
        runtime = settings.runtime.model_copy(update={"engine": "ray", "ray_workers": count})
        work = Captioning(_load, Way(BEAMS, 1, 0, False, 10**9), bytes_of(runtime.memory_gb))
        with open_engine(runtime) as engine:
            captions = engine.map(_read, work, pictures, batch=size, whole=True, needs_gpu=True)
            # Each worker has loaded the model once two batches for each are there.
            return _cost((isinstance(found, Captioned) for _, found in captions), 2 * size * count)

    rounds = [(generation(), workers(1), workers(2)) for _ in range(ROUNDS)]
    alone, one, two = (
        Cost(statistics.median(cost.cpu for cost in costs), statistics.median(cost.wall for cost in costs))
        for costs in zip(*rounds, strict=True)
    )
    return [
        _figure("two workers beside one", two, one, goal=1.11, a="two", b="one"),
        _figure("one worker beside generation alone", one, alone, goal=1.1, a="one worker", b="generation"),
    ]


def _cost(done: Iterator[int], before: int) -> Cost:
    """Return the cost of a picture; the first `before` items of `done`, each a number of pictures, do not count."""
    for _ in range(before):
        next(done)
    cpu, start = _cpu_seconds(), time.perf_counter()
    pictures = sum(done)
    return Cost((_cpu_seconds() - cpu) / pictures, (time.perf_counter() - start) / pictures)


def _cpu_seconds() -> float:
    """CPU seconds of this process and of Ray's, which are its children."""
    own = psutil.Process()
    seconds = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _figure(what: str, a_cost: Cost, b_cost: Cost, goal: float, a: str, b: str) -> Figure:
    return Figure(
        figure=f"bulk captions on Ray, CPU seconds of a picture: {what}",
        value=round(a_cost.cpu / b_cost.cpu, 3),
        unit="x",
        goal=goal,
        better="lower",
        runs=ROUNDS,
        a=f"{a}: {a_cost}",
        b=f"{b}: {b_cost}",
    )


def _load() -> Captioner:
    return Captioner.from_folder(GIT_DEMO)


@contextmanager
def _read(data: bytes) -> Iterator[Read[None]]:
    yield Read(None, data)
