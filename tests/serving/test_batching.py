from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.serving.batching import Batcher, QueueFullError

Work = Callable[[Batcher[str, int, str]], Awaitable[Any]]


class Model:
    """Answers `key item`, remembers its batches, and waits while `go` is not set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, key: str, items: list[int]) -> list[str]:
        self.batches.append(items)
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("13 is bad")
        return [f"{key} {item}" for item in items]


def run(model: Model, work: Work, *, max_batch: int = 4, max_wait: float = 0.2, max_queue: int = 8) -> Any:
    async def main() -> Any:
        batcher = Batcher(model, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue)
        batcher.start()
        try:
            return await asyncio.wait_for(work(batcher), 20)
        finally:
            model.go.set()
            await batcher.close()

    return asyncio.run(main())


def test_requests_with_the_same_key_share_a_batch_and_get_their_own_answers() -> None:
    model = Model()
    answers = run(model, lambda b: asyncio.gather(b.submit("a", [1]), b.submit("a", [2, 3]), b.submit("b", [4])))
    assert answers == [["a 1"], ["a 2", "a 3"], ["b 4"]]
    assert sorted(map(sorted, model.batches)) == [[1, 2, 3], [4]]


def test_a_full_batch_does_not_wait() -> None:
    model = Model()
    answers = run(model, lambda b: asyncio.gather(*(b.submit("a", [k]) for k in range(8))), max_wait=1000)
    assert answers == [[f"a {k}"] for k in range(8)]
    assert [len(batch) for batch in model.batches] == [4, 4]


def test_a_large_request_does_not_delay_a_small_one() -> None:
    model = Model()

    async def work(batcher: Batcher[str, int, str]) -> None:
        await asyncio.gather(batcher.submit("a", list(range(100, 140))), batcher.submit("a", [1]))

    run(model, work)
    assert 1 in model.batches[0]


def test_a_failing_item_spoils_only_itself() -> None:
    model = Model()
    first, second = run(model, lambda b: asyncio.gather(b.submit("a", [1, 13]), b.submit("a", [2])))
    assert first[0] == "a 1"
    assert isinstance(first[1], ValueError)
    assert second == ["a 2"]


def test_cancelled_requests_leave_the_queue() -> None:
    model = Model()
    model.go.clear()

    async def work(batcher: Batcher[str, int, str]) -> None:
        blocking = asyncio.ensure_future(batcher.submit("a", [1]))
        while not model.batches:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.submit("a", [2])
        later = asyncio.ensure_future(batcher.submit("a", [3]))
        await asyncio.sleep(0.05)
        model.go.set()
        assert await blocking == ["a 1"]
        assert await later == ["a 3"]

    run(model, work, max_wait=0.01)
    assert model.batches == [[1], [3]]


def test_a_full_queue_says_when_to_come_back_and_frees_its_places() -> None:
    async def work(batcher: Batcher[str, int, str]) -> None:
        with batcher.admit(6):
            with pytest.raises(QueueFullError) as busy, batcher.admit(3):
                pass
            assert busy.value.retry_after >= 1
            with batcher.admit(2):
                assert batcher.admitted == 8
        with batcher.admit(8):
            pass
        assert batcher.admitted == 0

    run(Model(), work)
