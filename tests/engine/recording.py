"""An engine that works in this process, in batches, as Ray's workers do in theirs."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest

from pipeline.engine.base import Engine
from pipeline.models import data_set_captions


class RecordingEngine(Engine):
    """Keeps the sizes of the batches of each call, in `calls`."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def map(self, read: Any, make_work: Any, items: Iterable[Any], **options: Any) -> Iterator[tuple[Any, Any]]:
        """See `Engine.map`."""
        assert options["whole"]
        assert options["needs_gpu"]
        work, sizes = pickle.loads(pickle.dumps(make_work))(), []
        self.calls.append(sizes)
        waiting = iter(items)
        while batch := list(islice(waiting, options["batch"])):
            found = []
            for item in batch:
                with read(item) as one:
                    found.append(one)
            sizes.append(len(batch))
            yield from zip([one.kept for one in found], work([one.data for one in found]), strict=True)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    """Takes the place of the engine that `evaluate` and `promote` open."""
    engine = RecordingEngine()

    @contextmanager
    def opened(runtime: Any) -> Iterator[Engine]:
        assert runtime.engine == "ray"
        yield engine

    monkeypatch.setattr(data_set_captions, "open_engine", opened)
    return engine
