"""Dynamic batching: pictures of different requests share a forward pass if they are decoded with the same options.

One thread runs the model. While it is busy, pictures wait; then up to `max_batch` pictures of the oldest request's key
are taken, one from each request in turn, so that a request with many pictures does not delay the others. If there are
fewer, the batch waits for more until the oldest picture has waited `max_wait` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MAX_RETRY_SECONDS = 60
_SMOOTHING = 0.2  # weight of the newest batch in the moving average of seconds per picture


class QueueFullError(Exception):
    """The queue is full; `retry_after` is an estimate in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(eq=False)
class _Request(Generic[Key, Item, Answer]):
    """A request's pictures that wait."""

    key: Key
    waiting: deque[tuple[Item, asyncio.Future[Answer]]]
    since: float  # the event loop's clock, seconds


class Batcher(Generic[Key, Item, Answer]):
    """The queue and the thread that works on it. Use it in one event loop; `start` first and `close` last."""

    def __init__(
        self,
        run: Callable[[Key, list[Item]], list[Answer]],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Create a queue.

        Args:
            run: returns the answers of a batch, in order; it runs in the batcher's thread.
            max_batch: items per batch.
            max_wait: seconds that an item waits for others.
            max_queue: items that were admitted and are not answered yet.
            observe: is called with the size of each batch.
        """
        self._run = run
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._observe = observe
        self._requests: deque[_Request[Key, Item, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None
        self._seconds_per_item = 0.1
        self.admitted = 0

    def start(self) -> None:
        """Start to work on the queue."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop; a running batch ends first."""
        if self._worker:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        await asyncio.to_thread(self._thread.shutdown)

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserve places in the queue for the duration of the block.

        Raises:
            QueueFullError: the queue has too few places.
        """
        if self.admitted + count > self._max_queue:
            seconds = math.ceil(self.admitted * self._seconds_per_item)
            raise QueueFullError(min(max(seconds, 1), _MAX_RETRY_SECONDS))
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    async def submit(self, key: Key, items: Sequence[Item]) -> list[Answer | BaseException]:
        """Return the answer of each item, or the exception that its computation raised.

        If the caller is cancelled, items that are still waiting leave the queue.

        Args:
            key: only items with equal keys share a batch.
            items: the items of one request.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        self._requests.append(_Request(key, deque(zip(items, futures, strict=True)), loop.time()))
        self._arrived.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._forget_cancelled()
            if not self._requests:
                self._arrived.clear()
                continue
            key = self._requests[0].key
            await self._wait_for_more(key, self._requests[0].since + self._max_wait)
            batch = self._take(key)
            if not batch:
                continue
            items, futures = zip(*batch, strict=True)
            self._observe(len(items))
            start = loop.time()
            answers = await loop.run_in_executor(self._thread, self._answers, key, list(items))
            newest = (loop.time() - start) / len(items)
            self._seconds_per_item += _SMOOTHING * (newest - self._seconds_per_item)
            for future, answer in zip(futures, answers, strict=True):
                _set(future, answer)

    def _answers(self, key: Key, items: list[Item]) -> list[Answer | Exception]:
        """Return the answers of a batch; if it fails, compute each item alone, so that one can't spoil the others."""
        try:
            return list(self._run(key, items))
        except Exception as error:
            if len(items) == 1:
                return [error]
            return list(itertools.chain.from_iterable(self._answers(key, [item]) for item in items))

    async def _wait_for_more(self, key: Key, until: float) -> None:
        """Wait until a batch is full or the clock says `until`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while self._count(key) < self._max_batch:
                    self._arrived.clear()
                    await self._arrived.wait()
        self._arrived.set()

    def _count(self, key: Key) -> int:
        return sum(len(request.waiting) for request in self._requests if request.key == key)

    def _take(self, key: Key) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Remove up to `max_batch` items from the queue, one of each request in turn."""
        self._forget_cancelled()
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        turns = deque(request for request in self._requests if request.key == key)
        while turns and len(batch) < self._max_batch:
            request = turns.popleft()
            batch.append(request.waiting.popleft())
            if request.waiting:
                turns.append(request)
        self._forget_cancelled()
        return batch

    def _forget_cancelled(self) -> None:
        """Remove items whose request was cancelled, and requests without items."""
        for request in self._requests:
            if any(future.done() for _, future in request.waiting):
                request.waiting = deque(pair for pair in request.waiting if not pair[1].done())
        self._requests = deque(request for request in self._requests if request.waiting)


def _set(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():  # the request was cancelled meanwhile
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
