"""What every engine does: an ordered `map` over items that are read here and worked on anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")

Work = Callable[[Sequence[bytes]], Sequence[R]]  # a result for each item, in order


@dataclass(frozen=True)
class Read(Generic[K]):
    """An item that has been read.

    Attributes:
        kept: stays on this machine, and is returned beside the result.
        data: goes to a worker; None if there is nothing to work on.
    """

    kept: K
    data: bytes | None


class Engine(ABC):
    """Runs work on many items. The results do not depend on the engine."""

    @abstractmethod
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
        """Yield what was kept of each item and the result of its work (None without data), in the order of the items.

        Only a few items are read ahead, so that a source of any size fits in memory.

        Args:
            read: called in threads of this machine; the context may hold memory for the item.
            make_work: called once in each worker. It can be pickled, and so can what the work returns. An exception of
                the work ends the run.
            items: what to read.
            batch: items that a worker gets at a time, at most. Fewer if they are large.
            whole: whether batches are always as large as `batch`, except for the last one; items without data count.
            needs_gpu: whether a worker takes a GPU, if the engine has GPUs.
            readers: threads that read at once, at least; more than the engine's own pay off if they wait for a network.
        """
