"""The optimizer, and the loss that it lowers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.models.precision import computing

if TYPE_CHECKING:
    from pipeline.models.git.modeling import GitForCausalLM
    from pipeline.training.loader import Batch


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is trained, with weight decay on matrices, and none on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def summed_loss(
    model: GitForCausalLM, batch: Batch, dtype: torch.dtype = torch.float32, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a batch's captions, computed in `dtype`, and the number of their tokens."""
    with computing(batch.input_ids.device, dtype):
        return model.caption_loss(
            batch.pixel_values,
            batch.input_ids,
            batch.attention_mask,
            batch.picture_of,
            features=batch.features,
            labels=batch.labels,
            label_smoothing=label_smoothing,
        )
