from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.engine.base import Engine, Read
from pipeline.engine.choice import open_engine
from pipeline.engine.local import LocalEngine
from pipeline.runtime.parallel_map import parallel_map
from tests.conftest import ROOT, run, set_params

needs_ray = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]
ENGINES = ["local", pytest.param("ray", marks=needs_ray)]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "local":
        yield LocalEngine(3)
        return
    settings = params.load(ROOT / "params.yaml").runtime
    with open_engine(settings.model_copy(update={"engine": "ray", "ray_workers": 2})) as opened:
        yield opened


@contextmanager
def read(number: int) -> Iterator[Read[int]]:
    """Every third item has nothing to work on."""
    yield Read(number, None if number % 3 == 0 else str(number).encode())


class Doubling:
    """Doubles numbers; the first ones take longer, so that they are done last."""

    def __call__(self) -> Callable[[Sequence[bytes]], list[int]]:
        def work(batch: Sequence[bytes]) -> list[int]:
            time.sleep(0.3 if b"1" in batch else 0)
            return [2 * int(data) for data in batch]

        return work


class Failing:
    """Fails as a stage does."""

    def __call__(self) -> Callable[[Sequence[bytes]], list[int]]:
        def work(batch: Sequence[bytes]) -> list[int]:
            raise DataError("no such luck")

        return work


class Dying:
    """Kills the worker that gets item 7: the first time, or without a flag every time."""

    def __init__(self, flag: Path | None) -> None:
        self.flag = flag

    def __call__(self) -> Callable[[Sequence[bytes]], list[int]]:
        def work(batch: Sequence[bytes]) -> list[int]:
            if b"7" in batch and not (self.flag and self.flag.exists()):
                if self.flag:
                    self.flag.touch()
                os._exit(1)
            return [2 * int(data) for data in batch]

        return work


EXPECTED = [(number, None if number % 3 == 0 else 2 * number) for number in range(100)]


def test_results_come_in_the_order_of_the_items(engine: Engine) -> None:
    assert list(engine.map(read, Doubling(), range(100), batch=4)) == EXPECTED


def test_a_source_without_items_is_no_error(engine: Engine) -> None:
    assert list(engine.map(read, Doubling(), range(0))) == []
    assert list(engine.map(read, Doubling(), [0])) == [(0, None)]


def test_an_error_of_the_work_stays_one_line(engine: Engine) -> None:
    with pytest.raises(DataError, match="^no such luck$"):
        list(engine.map(read, Failing(), range(9)))


def test_more_readers_wait_at_once_and_no_more_work(engine: Engine) -> None:
    waiting = threading.Barrier(12, timeout=60)  # fewer than that at once would fail

    @contextmanager
    def waits(number: int) -> Iterator[Read[int]]:
        waiting.wait()
        yield Read(number, str(number).encode())

    found = list(engine.map(waits, Doubling(), range(24), batch=4, readers=12))
    assert found == [(number, 2 * number) for number in range(24)]


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_a_worker_with_other_code_ends_the_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.ray_engine.code_hash", lambda: "the hash of this machine's code")
    with pytest.raises(
        ConfigError, match=r"ray_address: a machine of the cluster has another version of image-caption"
    ):
        list(engine.map(read, Doubling(), range(9)))


class Together:
    """Returns how many pieces of work were done at the same time."""

    def __call__(self) -> Callable[[Sequence[bytes]], list[int]]:
        lock, now = threading.Lock(), [0]

        def work(batch: Sequence[bytes]) -> list[int]:
            with lock:
                now[0] += 1
                found = now[0]
            time.sleep(0.01)
            with lock:
                now[0] -= 1
            return [found]

        return work


def test_many_readers_do_not_mean_many_that_decode() -> None:
    found = [result for _, result in LocalEngine(2).map(read, Together(), range(60), readers=12) if result]
    assert max(found) == 2


def test_after_a_failure_nothing_more_is_read() -> None:
    begun: list[int] = []

    def fails(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise DataError("no such luck")
        time.sleep(0.5)
        return number

    with pytest.raises(DataError, match="^no such luck$"):
        list(parallel_map(fails, range(100), 2))
    assert len(begun) < 9, "as many wait for a thread, or have one"


def test_only_a_few_items_are_read_ahead(engine: Engine) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = engine.map(read, Doubling(), items(), batch=4)
    next(results)
    assert len(taken) < 200
    results.close()  # type: ignore[attr-defined]


class Counting:
    """Returns the size of the batch for each of its items."""

    def __call__(self) -> Callable[[Sequence[bytes]], list[int]]:
        return lambda batch: [len(batch)] * len(batch)


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=needs_ray)], indirect=True)
def test_whole_batches_stay_whole_if_items_are_large(engine: Engine) -> None:
    @contextmanager
    def read_large(number: int) -> Iterator[Read[int]]:
        yield Read(number, None if number == 1 else bytes(5 * 2**20))

    whole = [result for _, result in engine.map(read_large, Counting(), range(10), batch=4, whole=True)]
    assert whole == [3, None, 3, 3, 4, 4, 4, 4, 2, 2]
    smaller = [result for _, result in engine.map(read_large, Counting(), range(10), batch=4)]
    assert smaller == [2, None, 2, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=needs_ray)], indirect=True)
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(engine: Engine, tmp_path: Path) -> None:
    assert list(engine.map(read, Dying(tmp_path / "died"), range(100), batch=4)) == EXPECTED
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=needs_ray)], indirect=True)
def test_a_batch_that_kills_every_worker_ends_the_run(engine: Engine) -> None:
    with pytest.raises(TemporaryError, match=r"5 workers died with the same batch of 4, first \d+ "):
        list(engine.map(read, Dying(None), range(12), batch=4))


def test_nothing_of_ray_is_imported_with_local(workspace: Path) -> None:
    probe = (
        "import sys, argparse\nfrom pipeline import ingest\nfrom pipeline.config import params\n"
        "from pipeline.engine.choice import open_engine\nimport pipeline.serving.bulk\n"
        "with open_engine(params.load().runtime): pass\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray'])"
    )
    done = run(workspace, sys.executable, "-c", probe)
    assert done.stdout == "[]\n", done.stderr


def test_without_ray_the_extra_is_named(workspace: Path) -> None:
    set_params(workspace, {"runtime.engine": "ray", "ingest.sources": ["s"]})
    code = "import sys; sys.modules['ray'] = None; from pipeline.ingest import _arguments, run; "
    code += "from pipeline.runtime import entrypoint; sys.argv[1:] = ['s']; entrypoint.main('ingest', run, _arguments)"
    done = run(workspace, sys.executable, "-c", code)
    assert done.returncode == 78
    assert "pip install 'image-captioning[ray]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
