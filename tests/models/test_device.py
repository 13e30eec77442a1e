from __future__ import annotations

import re

import pytest
import torch

from pipeline.models.device import best_device
from pipeline.training.random_states import random_states, set_random_states, unchanged_random_states
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_cuda_comes_before_apples_gpu_and_that_before_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(expected)


def test_the_device_is_chosen_in_one_place() -> None:
    asks = re.compile(r"cuda\.is_available|backends\.mps|mps\.is_available")
    files = [path for path in (ROOT / "pipeline").rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(ROOT).as_posix() for path in files] == ["pipeline/models/device.py"]


class Generator:
    """Stands for the module of a GPU, whose random state is a number of its own."""

    def __init__(self) -> None:
        self.state = torch.tensor([7], dtype=torch.uint8)

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        assert device.type == "mps"
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        assert device.type == "mps"
        self.state = state.clone()


def test_random_states_include_those_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = Generator(), torch.device("mps")
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    states = random_states(device)
    assert set(states) == {"cpu", "mps"}
    expected = torch.rand(3)
    gpu.state += 1
    set_random_states(states, device)
    assert torch.equal(torch.rand(3), expected)
    assert gpu.state.item() == 7
    set_random_states(states, device)
    with unchanged_random_states(device):
        torch.rand(5)
        gpu.state += 1
    assert torch.equal(torch.rand(3), expected)
    assert gpu.state.item() == 7
    assert set(random_states(torch.device("cpu"))) == {"cpu"}
