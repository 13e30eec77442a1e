"""The engine `local`: threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

from pipeline.engine.base import Engine, K, R, Read, T, Work
from pipeline.runtime.parallel_map import own_threads, parallel_map


class LocalEngine(Engine):
    """Reads and works in the same thread, so that what an item's context holds is held until its work is done."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def map(
        self,
        read: Callable[[T], AbstractContextManager[Read[K]]],
        make_work: Callable[[], Work[R]],
        items: Iterable[T],
        *,
        batch: int = 64,
        whole: bool = False,
        needs_gpu: bool = False,
        readers: int = 0,
    ) -> Iterator[tuple[K, R | None]]:
        """See `Engine.map`; threads take single items, whatever `batch` and `whole` say."""
        work = make_work()
        workers = own_threads(self._threads)
        may_work = threading.Semaphore(workers)

        def read_and_work(item: T) -> tuple[K, R | None]:
            with read(item) as found:
                if found.data is None:
                    return found.kept, None
                with may_work:
                    return found.kept, work([found.data])[0]

        return parallel_map(read_and_work, items, max(workers, readers))
