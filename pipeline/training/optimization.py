"""The optimizer and the loss."""

from __future__ import annotations

import torch

from pipeline.models.base import CaptionModel
from pipeline.models.inputs import Batch
from pipeline.models.precision import autocast


def adamw(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, with weight decay on matrices but not on biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class CaptionLoss(torch.nn.Module):
    """The loss of a batch, as a module because data-parallel training wraps a forward pass.

    Args:
        model: the model.
        dtype: dtype of matrix products.
        label_smoothing: share of the target spread evenly over the vocabulary.
    """

    def __init__(self, model: CaptionModel, dtype: torch.dtype = torch.float32, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self._dtype, self._label_smoothing = dtype, label_smoothing

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss of a batch's captions (nats), and the number of their tokens."""
        with autocast(batch.input_ids.device, self._dtype):
            return self.model.caption_loss(
                batch.pixel_values,
                batch.input_ids,
                batch.attention_mask,
                batch.picture_of,
                features=batch.features,
                labels=batch.labels,
                label_smoothing=self._label_smoothing,
            )
