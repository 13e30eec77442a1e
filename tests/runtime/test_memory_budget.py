from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import memory_budget
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, machine_memory


def test_threads_never_hold_more_than_the_budget_and_all_are_served() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    held, peak, done = 0, 0, 0

    def work(size: int) -> None:
        nonlocal held, peak, done
        for _ in range(20):
            with budget.reserve(size):
                with lock:
                    held += size
                    peak = max(peak, held)
                time.sleep(0.0005)
                with lock:
                    held -= size
                    done += 1

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 20, 30, 60, 70, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == 120
    assert 0 < peak <= 100


def test_more_than_the_budget_waits_for_all_others_and_runs_alone() -> None:
    budget = MemoryBudget(100)
    order: list[str] = []

    def large() -> None:
        with budget.reserve(10**9):
            order.append("large")
            time.sleep(0.1)
            order.append("large is done")

    def small() -> None:
        with budget.reserve(1):
            order.append("small")

    with budget.reserve(1):
        threads = [threading.Thread(target=large), threading.Thread(target=small)]
        threads[0].start()
        time.sleep(0.1)
        threads[1].start()  # fits, but the large one asked first
        time.sleep(0.1)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["large", "large is done", "small"]


def test_a_failure_in_the_block_releases_its_memory() -> None:
    budget = MemoryBudget(100)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), budget.reserve(100):
            raise ValueError("broken")


def test_large_blocks_are_returned_to_the_system_before_the_next_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[int] = []
    budget = MemoryBudget(10**9)
    monkeypatch.setattr(memory_budget, "_return_freed_memory", lambda: returned.append(budget._used))
    with budget.reserve(1000):
        pass
    with budget.reserve(2**27):
        pass
    assert returned == [2**27]


def test_zero_stands_for_half_of_the_memory() -> None:
    assert bytes_of(0) == machine_memory() // 2
    assert bytes_of(1.5) == 1_500_000_000
    assert machine_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/pod/one\n", {"pod/one/memory.max": "3000", "pod/memory.max": "2000", "memory.max": "max"}, 2000),
        ("0::/host/path\n", {"memory.max": "5000"}, 5000),  # in a container
        ("0::/\n", {}, None),
        ("0::/one\n", {"one/memory.max": "max"}, None),
        ("9:cpu:/x\n4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "4000", "memory/memory.limit_in_bytes": "9"}, 9),
    ],
)
def test_the_lowest_limit_of_the_control_groups_counts(
    tmp_path: Path, own: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "cgroup").write_text(own)
    for name, limit in limits.items():
        file = tmp_path / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    found = machine_memory(tmp_path / "mounted", tmp_path / "cgroup")
    assert found == (psutil.virtual_memory().total if expected is None else expected)
