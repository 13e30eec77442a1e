"""`map` in threads, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` with threads (Pillow releases the GIL while decoding); results keep the order of the items.

    Unlike `Executor.map` it reads only a few items ahead, so that an archive of any size fits in memory.
    """
    workers = threads or (os.cpu_count() or 1) + 1  # one more than cores, because one usually waits for the GIL
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
