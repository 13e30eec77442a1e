from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from pipeline.config.errors import ConfigError
from pipeline.models.git.parity import check_loss


def test_the_installed_transformers_passes_without_changing_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_loss()
    assert torch.equal(torch.rand(3), expected)


def test_a_transformers_with_another_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.GitForCausalLM.forward

    def other(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        result.logits = result.logits * 1.01
        return result

    monkeypatch.setattr(transformers.GitForCausalLM, "forward", other)
    with pytest.raises(ConfigError, match=rf"transformers {transformers.__version__}: .* another loss"):
        check_loss()
