"""The benchmark for a GPU: its code runs on a CPU, and without a GPU it is left out."""

from __future__ import annotations

import pytest
import torch

from benchmarks import UnavailableError, gpu
from pipeline.models.git import modeling
from pipeline.models.git.packing import Packing
from tests.models.git.test_modeling import config


def test_without_a_gpu_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "best_device", lambda: torch.device("cpu"))
    with pytest.raises(UnavailableError, match="GPU"):
        gpu.figures()


def test_it_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[bool] = []
    mask = Packing.mask

    def watched(self: Packing, image_tokens: int, dtype: torch.dtype, is_dense: bool) -> torch.Tensor:
        found = mask(self, image_tokens, dtype, is_dense)
        masks.append(type(found) is torch.Tensor)
        return found

    monkeypatch.setattr(Packing, "mask", watched)
    monkeypatch.setattr(modeling, "by_hand", lambda x: False)  # as on a GPU
    monkeypatch.setattr(gpu, "RUNS", 1)
    monkeypatch.setattr(gpu, "LENGTH", 6)
    found = gpu.figures_on(torch.device("cpu"), torch.float32, config(), pictures=2)
    assert [figure.figure.removesuffix(" (float32 on cpu)") for figure in found] == [
        "training, 5 captions a picture",
        "training, 5 captions a picture, operations",
        "training, 1 caption a picture",
        "training, 1 caption a picture, operations",
        "training, 1 caption a picture, mask",
        "captions of 8 pictures, 4 beams",
        "captions of 8 pictures, 5 samples",
    ]
    assert all(figure.value > 0 for figure in found)
    # Each is run twice: ours, ours by hand, and ours again with five captions and with one, then the pair of masks.
    assert masks == [True] * 6 + [False] * 6 + [True, False] * 2
    assert Packing.mask is watched
