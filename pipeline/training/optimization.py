"""The optimizer and the loss."""

from __future__ import annotations

import math

import torch

from pipeline.config.sections.finetune import Finetune
from pipeline.models.base import CaptionModel
from pipeline.models.inputs import Batch
from pipeline.models.precision import autocast

_LORA_RATE = 1e-3


def epoch_count(settings: Finetune, pictures: int) -> int:
    """Return the number of epochs with cross-entropy: the param, or if it is `auto`, what suits the number of pictures.

    `auto` is 20 for 750 training pictures and falls with the square root of their number: 55 for 100, 17 for 1,000; it
    is never below 4 or above 80. With few pictures an epoch has few steps (benchmarks/results/defaults.md).
    """
    if settings.epochs != "auto":
        return settings.epochs
    return min(80, max(4, round(20 * math.sqrt(750 / pictures))))


def learning_rate(settings: Finetune, model: CaptionModel) -> float:
    """Return the peak learning rate: the param, or if it is `auto`, what suits the model, or LoRA."""
    if settings.learning_rate != "auto":
        return settings.learning_rate
    return _LORA_RATE if settings.lora.rank else model.suitable_learning_rate


def self_critical_rate(settings: Finetune, rate: float) -> float:
    """Return the constant learning rate of self-critical training; `rate` is the peak rate before."""
    return rate / 10 if settings.self_critical.learning_rate == "auto" else settings.self_critical.learning_rate


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

    def forward(self, batch: Batch, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a batch's captions, nats.

        Args:
            batch: the captions.
            weights: of each caption, `(captions,)`.

        Returns:
            the summed loss and the number of tokens; with `weights` the weighted sum of the negative log-probabilities,
            without label smoothing, and each of them without gradients, `(captions,)`.
        """
        with autocast(batch.input_ids.device, self._dtype):
            if weights is not None:
                losses = -self.model.log_probabilities(
                    batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of, batch.features
                )
                return (weights * losses).sum(), losses.detach()
            return self.model.caption_loss(
                batch.pixel_values,
                batch.input_ids,
                batch.attention_mask,
                batch.picture_of,
                features=batch.features,
                labels=batch.labels,
                label_smoothing=self._label_smoothing,
            )
