from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.models import threads
from pipeline.models.threads import SMALL, suit_threads


@pytest.fixture(autouse=True)
def three_chosen_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_chosen_by_torch", lambda: 3)
    yield
    torch.set_num_threads(before)


def test_a_small_model_gets_one_thread_and_a_large_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for parameters, expected in ((SMALL - 1, 1), (SMALL, 3), (1, 1)):
        suit_threads(parameters)
        assert torch.get_num_threads() == expected


def test_a_number_in_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    suit_threads(1)
    assert torch.get_num_threads() == 2
