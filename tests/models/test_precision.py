from __future__ import annotations

import pytest
import torch

from pipeline.models.inputs import collate
from pipeline.models.precision import captioning_dtype, compute_dtype, describe
from pipeline.training.optimization import CaptionLoss
from tests.models.git.test_checkpoint import small

CPU = torch.device("cpu")


def test_auto_is_float32_on_a_cpu_and_a_named_precision_is_used() -> None:
    assert compute_dtype("auto", CPU) is torch.float32
    assert compute_dtype("bfloat16", CPU) is torch.bfloat16
    assert compute_dtype("auto", torch.device("mps")) is captioning_dtype(CPU) is torch.float32
    assert compute_dtype("float16", CPU) is torch.float16
    assert compute_dtype("float32", torch.device("cuda")) is torch.float32
    assert describe(CPU, torch.bfloat16) == "bfloat16 on cpu"


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_is_bfloat16_if_that_is_native_else_float16(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert compute_dtype("auto", torch.device("cuda")) is (torch.bfloat16 if native else torch.float16)
    assert captioning_dtype(torch.device("cuda")) is (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_has_a_similar_loss_and_keeps_weights_in_float32(dtype: torch.dtype, off: float) -> None:
    checkpoint = small()
    checkpoint.model.eval()
    tokens = [[checkpoint.tokenizer(caption)["input_ids"] for caption in ("a red star", "two dogs")]]
    batch = collate(checkpoint, torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), tokens)
    exact, _ = CaptionLoss(checkpoint.model)(batch)
    rough, _ = CaptionLoss(checkpoint.model, dtype)(batch)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=off)
    assert rough.item() != exact.item()
    rough.backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in checkpoint.model.parameters() if p.grad is not None)
