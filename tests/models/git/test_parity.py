from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from pipeline.config.errors import ConfigError
from pipeline.models.git import modeling, ops
from pipeline.models.git.parity import check

CPU = torch.device("cpu")


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_installed_transformers_passes_without_changing_the_random_state(by_hand: bool) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with ops.computed(by_hand):
        check(CPU)
    assert torch.equal(torch.rand(3), expected)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 1.01 * gradients[0]


def scaled(logits: torch.Tensor) -> torch.Tensor:
    return logits * 1.01


def wrong_gradient(logits: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = WrongGradient.apply(logits)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize(("change", "what"), [(scaled, "loss"), (wrong_gradient, "gradient")])
def test_a_transformers_with_another_loss_or_gradient_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], what: str
) -> None:
    real = transformers.GitForCausalLM.forward

    def other(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result.logits = change(result.logits)
        return result

    monkeypatch.setattr(transformers.GitForCausalLM, "forward", other)
    with pytest.raises(ConfigError, match=rf"transformers {transformers.__version__}: .* another {what} than ours"):
        check(CPU)


def test_a_generation_with_other_captions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling.generation_layer

    def other(layer: Any, hidden: torch.Tensor, image: Any, text: Any, mask: Any) -> torch.Tensor:
        return real(layer, hidden, tuple(part.flip(0) for part in image), text, mask)  # another picture's

    monkeypatch.setattr(modeling, "generation_layer", other)
    with pytest.raises(ConfigError, match="another caption than ours"):
        check(CPU)
