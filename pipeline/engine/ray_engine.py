"""The engine `ray`: workers in other processes, of this machine or of a cluster.

The items are read in this process, in order, so that an archive's limits count as with `local`. A worker that dies, be
it with its machine, is replaced, and its batches go to others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import pipeline
from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.engine.base import Engine, K, R, Read, T, Work
from pipeline.engine.ray_session import check_that_somebody_listens
from pipeline.runtime.parallel_map import parallel_map

_CLUSTER = "params.yaml: runtime.ray_address"
_READ_THREADS = 4
_BATCH_BYTES = 8 * 2**20
_QUEUED = 2  # batches that a worker has, so that it does not wait for the next one
_ATTEMPTS = 5  # of a batch, if the worker dies each time
_GROW_SECONDS = 5.0  # between looks at whether a worker is missing
_NO_WORKER_SECONDS = 300.0
_HEAD_SECONDS = 30.0  # without an answer of the cluster's head; after 60 Ray ends this process


def code_hash() -> str:
    """Return the hash of all modules of this package."""
    package = Path(pipeline.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


class _Worker(Generic[R]):
    """Lives in a process of Ray."""

    def __init__(self, make_work: Callable[[], Work[R]]) -> None:
        self._make_work = make_work
        self._work: Work[R] | None = None

    def code(self) -> str:
        """Return the hash of the code that this process runs, which also shows that it has started."""
        return code_hash()

    def run(self, data: Sequence[bytes]) -> Sequence[R]:
        self._work = self._work or self._make_work()
        return self._work(data)


@dataclass
class _Batch(Generic[K]):
    """Attributes: `kept` of each item, and whether it has data; the data, or Ray's reference to them."""

    kept: list[tuple[K, bool]] = field(default_factory=list)
    data: Any = field(default_factory=list)
    size: int = 0
    attempts: int = 0


class RayEngine(Engine):
    """Runs work in Ray's workers; Ray must have been started, see `ray_session.started`."""

    def __init__(self, workers: int) -> None:
        """Use so many workers at most; 0 for one per CPU (or GPU) that Ray has."""
        self._workers = workers

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
        """See `Engine.map`.

        Raises:
            ConfigError: a machine of the cluster has other code.
            TemporaryError: the workers of a batch died again and again, or no worker starts.
        """

        def read_item(item: T) -> Read[K]:
            with read(item) as found:
                return found

        batches = enumerate(_batches(parallel_map(read_item, items, max(_READ_THREADS, readers)), batch, whole))
        pool: _Pool[R] = _Pool(make_work, self._workers, needs_gpu)
        ahead: dict[int, _Batch[K]] = {}  # read, and not yielded yet
        try:
            following, more = 0, True
            while more or ahead:
                while more and len(ahead) < pool.window:
                    number, new = next(batches, (0, None))
                    if new is None:
                        more = False
                    else:
                        ahead[number] = new
                        pool.submit(number, new)
                if following in pool.results:
                    results = iter(pool.results.pop(following))
                    for kept, has_data in ahead.pop(following).kept:
                        yield kept, next(results) if has_data else None
                    following += 1
                elif ahead:
                    pool.wait()
        finally:
            pool.close()


def _batches(found: Iterable[Read[K]], most: int, whole: bool) -> Iterator[_Batch[K]]:
    """Yield batches of `most` items; if they need not be `whole`, fewer from about `_BATCH_BYTES` on."""
    batch: _Batch[K] = _Batch()
    for one in found:
        batch.kept.append((one.kept, one.data is not None))
        if one.data is not None:
            batch.data.append(one.data)
            batch.size += len(one.data)
        if len(batch.kept) == most or (not whole and batch.size >= _BATCH_BYTES):
            yield batch
            batch = _Batch()
    if batch.kept:
        yield batch


class _Pool(Generic[R]):
    """The workers, and which batches each of them has.

    Attributes:
        results: number of a batch -> its results, until someone takes them.
    """

    def __init__(self, make_work: Callable[[], Work[R]], most: int, needs_gpu: bool) -> None:
        import ray

        self.results: dict[int, Sequence[R]] = {}
        self._ray = ray
        self._most = most
        self._resource = "GPU" if needs_gpu and ray.cluster_resources().get("GPU") else "CPU"
        share = {"num_gpus": 1} if self._resource == "GPU" else {"num_cpus": 1}
        self._actor = ray.remote(_Worker).options(max_restarts=0, **share)
        self._make_work = ray.put(make_work)
        self._code = code_hash()
        self._starting: dict[Any, Any] = {}  # reference to the first answer -> worker
        self._load: dict[Any, int] = {}  # worker that answers -> batches that it has
        self._running: dict[Any, tuple[Any, int]] = {}  # reference to results -> worker, number of the batch
        self._waiting: list[int] = []
        self._batches: dict[int, _Batch[Any]] = {}
        self._head = ray.get_runtime_context().gcs_address
        self._looked = self._alive = self._answered = time.monotonic()
        self._grow()

    @property
    def window(self) -> int:
        """How many batches to read ahead of the results."""
        return 2 + (_QUEUED + 1) * max(1, len(self._load))

    def submit(self, number: int, batch: _Batch[Any]) -> None:
        """Give a batch to a worker as soon as one is free."""
        if not batch.data:
            self.results[number] = []
            return
        batch.data = self._ray.put(batch.data)
        self._batches[number] = batch
        self._waiting.append(number)
        self._assign()

    def wait(self) -> None:
        """Wait until something happens, at most a second; take results, and replace workers that died."""
        references = [*self._running, *self._starting]
        ready, _ = self._ray.wait(references, num_returns=1, timeout=1.0) if references else ([], [])
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
            elif reference in self._running:  # not taken from a dead worker meanwhile
                self._done(reference)
        now = time.monotonic()
        if now - self._looked > _GROW_SECONDS:
            self._grow_if_possible()
        if self._load:
            self._alive = now
        elif now - self._alive > _NO_WORKER_SECONDS:
            raise TemporaryError(
                f"Ray: no worker started within {_NO_WORKER_SECONDS:.0f} s; wait for other programs to finish, then run"
                " again, or with runtime.engine: local"
            )
        self._assign()

    def close(self) -> None:
        """End the workers."""
        for worker in [*self._load, *self._starting.values()]:
            self._ray.kill(worker)

    def _grow_if_possible(self) -> None:
        """Replace dead workers, unless the head does not answer: whatever asks it would wait for it."""
        self._looked = time.monotonic()
        try:
            check_that_somebody_listens(self._head)
        except OSError:
            if self._looked - self._answered > _HEAD_SECONDS:
                raise TemporaryError(
                    f"Ray: the head of the cluster, {self._head}, has not answered for {_HEAD_SECONDS:.0f} s; start the"
                    " cluster again, then run this again"
                ) from None
        else:
            self._answered = self._looked
            self._grow()

    def _grow(self) -> None:
        room = int(self._ray.cluster_resources().get(self._resource, 0))
        wanted = min(self._most or room, room)
        for _ in range(wanted - len(self._load) - len(self._starting)):
            worker = self._actor.remote(self._make_work)
            self._starting[worker.code.remote()] = worker

    def _assign(self) -> None:
        while self._waiting and self._load:
            worker = min(self._load, key=self._load.__getitem__)
            if self._load[worker] >= _QUEUED:
                return
            number = min(self._waiting)  # the earliest batch holds up the output
            self._waiting.remove(number)
            self._load[worker] += 1
            self._running[worker.run.remote(self._batches[number].data)] = worker, number

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            code = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if "No module named" in str(error):
                raise ConfigError(
                    f"{_CLUSTER}: a machine of the cluster has no image-captioning; install the version of this machine"
                    " on all"
                ) from None
            return  # `_grow` starts another
        if code != self._code:
            raise ConfigError(
                f"{_CLUSTER}: a machine of the cluster has another version of image-captioning, which may give other"
                " results; install the version of this machine on all"
            )
        self._load[worker] = 0

    def _done(self, reference: Any) -> None:
        worker, number = self._running.pop(reference)
        try:
            self.results[number] = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PipelineError | MemoryError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:  # the worker or its result is lost
            self._retry(number, error)
            self._bury(worker)
        else:
            self._load[worker] -= 1
            del self._batches[number]

    def _bury(self, worker: Any) -> None:
        """Give the batches of a dead worker to others. They may have killed it, each of them."""
        self._load.pop(worker, None)
        self._ray.kill(worker)  # if only its result was lost
        for reference in [one for one, (other, _) in self._running.items() if other is worker]:
            _, number = self._running.pop(reference)
            self._waiting.append(number)
        self._grow_if_possible()

    def _retry(self, number: int, error: Exception) -> None:
        batch = self._batches[number]
        batch.attempts += 1
        if batch.attempts == _ATTEMPTS:
            names = ", ".join(str(kept) for kept, _ in batch.kept[:1])
            reason = " ".join(str(error).split())[:200]
            raise TemporaryError(
                f"Ray: {_ATTEMPTS} workers died with the same batch of {len(batch.kept)}, first {names} ({reason}); run"
                " it again, or with runtime.engine: local"
            )
        self._waiting.append(number)
