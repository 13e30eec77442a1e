"""The optimizer, and one step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.model.precision import computing

if TYPE_CHECKING:
    from pipeline.model.batches import Batch
    from pipeline.model.git import GitForCausalLM


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


def train_step(
    model: GitForCausalLM,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    gradient_clip: float,
    dtype: torch.dtype = torch.float32,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step on the mean loss a token; gives the summed loss, detached, and the number of tokens."""
    loss, tokens = summed_loss(model, batch, dtype, label_smoothing)
    optimizer.zero_grad()
    (loss / tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    optimizer.step()
    schedule.step()
    return loss.detach(), tokens
