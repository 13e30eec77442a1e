"""How fast we are beside what a user would use instead: ratios of medians, taken in one run.

A benchmark is a module here with a function `figures()` that returns a list of figures, mostly made by
`ratio`. `python -m benchmarks [NAME ...]` runs them, writes `benchmarks/results/NAME.json`, and puts the table
into docs/benchmarks.md. Machines are noisy, so `a` and `b` alternate and only their ratio is claimed.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection


class UnavailableError(Exception):
    """What a benchmark compares with is not installed; says what is needed."""


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        figure: what was measured, in words.
        value: mostly median(a) / median(b).
        unit: of the value.
        goal: what it should reach.
        better: `higher` or `lower`.
        runs: how many times each was run.
        a, b: what was compared, with its median.
    """

    figure: str
    value: float
    unit: str
    goal: float
    better: str
    runs: int
    a: str
    b: str


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(
    figure: str,
    a: tuple[str, Callable[[], object]],
    b: tuple[str, Callable[[], object]],
    goal: float,
    runs: int,
    better: str = "lower",
    scale: float = 1.0,
) -> Figure:
    """The time of `a` over the time of `b` (each a name and the work), times `scale` where they do unequal amounts.

    Each is run once beforehand, to fill caches; then they alternate.
    """
    a[1](), b[1]()
    times: list[tuple[float, float]] = [(seconds(a[1]), seconds(b[1])) for _ in range(runs)]
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return Figure(
        figure=figure,
        value=round(scale * first / second, 3),
        unit="x",
        goal=goal,
        better=better,
        runs=runs,
        a=f"{a[0]}: {first:.2f} s",
        b=f"{b[0]}: {second:.2f} s",
    )


@contextmanager
def apart(make: Callable[..., Callable[[], object]], *arguments: object) -> Iterator[Callable[[], None]]:
    """The work that `make(*arguments)` gives, in a process of its own, so that ways do not share what they keep."""
    start = multiprocessing.get_context("spawn")
    here, there = start.Pipe()
    process = start.Process(target=_serve, args=(there, make, arguments), daemon=True)
    process.start()

    def work() -> None:
        here.send(True)
        here.recv()

    try:
        yield work
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection, make: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> None:
    work = make(*arguments)
    while connection.recv():
        work()
        connection.send(True)
