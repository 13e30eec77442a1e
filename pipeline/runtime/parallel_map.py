"""`map` in threads, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def own_threads(threads: int) -> int:
    """Return the number of threads; 0 stands for one more than cores, because one usually waits for the GIL."""
    return threads or (os.cpu_count() or 1) + 1


def parallel_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` with threads (Pillow releases the GIL while decoding); results keep the order of the items.

    Unlike `Executor.map` it reads only a few items ahead, so that an archive of any size fits in memory.
    """
    workers = own_threads(threads)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # after a failure nothing more begins
            for future in pending:
                future.cancel()
