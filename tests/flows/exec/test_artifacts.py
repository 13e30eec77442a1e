from __future__ import annotations

from collections.abc import Callable

import pytest

from flows.exec import artifacts


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The progress that artifacts were created or updated with."""
    shown: list[float] = []

    def create(progress: float, **more: object) -> str:
        shown.append(progress)
        return "id"

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda id_, progress, **more: shown.append(progress))
    return shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that artifacts see."""
    now = [0.0]
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_a_progress_artifact_is_updated_once_per_interval_only_on_change_and_at_the_end(
    updates: list[float], clock: Callable[[float], None]
) -> None:
    show = artifacts.Progress(30)
    for seconds, percent in [(0, 1), (2, 2), (29, 3), (31, 4), (90, 4), (92, 5), (93, 100), (94, 100)]:
        clock(seconds)
        show("finetune", percent, f"finetune: {percent}%")
    assert updates == [1, 4, 5, 100]
