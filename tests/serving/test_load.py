"""Many clients at once, with bad pictures among theirs, while a version is registered.

`LOAD_SECONDS=300 python -m pytest -m slow tests/serving/test_load.py -s` takes longer, and shows what was counted.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pipeline.serving.client import Client
from pipeline.tracking import runs
from tests.conftest import jpeg, set_params
from tests.serving.test_server import Process, register, served

__all__ = ["served"]  # a fixture

CLIENTS = 64
SECONDS = float(os.environ.get("LOAD_SECONDS", "40"))
BAD = 0.05
COLOURS = ["red", "navy", "green", "yellow", "black", "white", "pink", "orange"]


def bad_pictures() -> list[bytes]:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    return [b"", b"no picture", jpeg()[:300], bomb.getvalue(), b"%PDF-1.7 and more"]


@pytest.mark.slow
def test_no_client_gets_anothers_answer_and_memory_stays_flat(
    served: Callable[..., Process], workspace: Path, pictures: list[bytes]
) -> None:
    set_params(workspace, {"serving.follow_seconds": 1.0})
    process = served()
    good = [*pictures, *(jpeg(colour, (200 + 20 * k, 300)) for k, colour in enumerate(COLOURS))]
    with Client(process.url) as client:
        expected = [client.caption([data], beams=1).results[0].captions for data in good]
    assert len({tuple(captions) for captions in expected}) >= 8
    bad = bad_pictures()
    end = time.monotonic() + SECONDS
    failures: list[str] = []
    versions: set[int | None] = set()
    answered: list[float] = []
    refused: list[str] = []

    def ask(number: int) -> None:
        rng = random.Random(number)
        with Client(process.url) as client:
            while time.monotonic() < end:
                chosen = [rng.randrange(len(good)) for _ in range(rng.choice([1, 1, 2, 3]))]
                sent = [None if rng.random() < BAD else k for k in chosen]
                answer = client.caption([rng.choice(bad) if k is None else good[k] for k in sent], beams=1)
                versions.add(answer.version)
                answered.append(time.monotonic())
                for k, result in zip(sent, answer.results, strict=True):
                    if k is None and result.error:
                        refused.append(result.error)
                    if k is None and not result.error:
                        failures.append(f"client {number}: a bad picture got {result.captions}")
                    if k is not None and result.captions != expected[k]:
                        failures.append(f"client {number}: picture {k} got {result.captions} {result.error}")

    server = psutil.Process(process.pid)
    sizes: list[int] = []

    def measure() -> None:
        while time.monotonic() < end:
            sizes.append(server.memory_info().rss)
            time.sleep(0.5)

    threading.Thread(target=measure, daemon=True).start()
    with ThreadPoolExecutor(CLIENTS) as threads:
        asked = [threads.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(SECONDS / 4)
        register(runs.client(), workspace, "new")
        for one in asked:
            one.result()
    assert not failures, failures[:5]
    assert versions == {None, 1}
    third = len(sizes) // 3
    before, after = max(sizes[third : 2 * third]), max(sizes[2 * third :])
    memory = ", ".join(f"{size / 1e6:.0f}" for size in (sizes[0], before, after))
    print(
        f"{CLIENTS} clients, {SECONDS:.0f} s: {len(answered)} answers, {len(refused)} bad pictures refused, 0 wrong;"
        f" memory at first, in the second and in the last third: {memory} MB"
    )
    assert after < 1.1 * before
    assert process.end() == 0
