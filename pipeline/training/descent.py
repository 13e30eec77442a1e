"""The gradient of a step: the backward passes of its parts, in all processes together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from pipeline.config.errors import ConfigError
from pipeline.models.inputs import Batch
from pipeline.training.processes import Processes
from pipeline.training.self_critical import EndedError, Weighted


def descend(
    loss: torch.nn.Module,
    parts: Sequence[Batch | Weighted],
    weight: float,
    tokens: float,
    processes: Processes,
    optimizer: torch.optim.Optimizer,
    clip: float,
) -> tuple[float, float]:
    """Compute the clipped gradient of a step.

    Args:
        loss: a `CaptionLoss`, prepared for data-parallel training.
        parts: this process's share of the step.
        weight: 0 if the process has no pictures of its own in this step, else 1.
        tokens: of people's captions, of all processes.
        processes: the processes that train together.
        optimizer: over the trained parameters.
        clip: largest norm of the gradient.

    Returns:
        the summed cross-entropy of people's captions of all processes (nats), and the norm before clipping.
    """
    optimizer.zero_grad()
    summed = 0.0
    for last, part in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
        with nullcontext() if last else processes.accelerator.no_sync(loss):
            # Data-parallel training averages gradients over processes; here they must be summed.
            if isinstance(part, Weighted):
                weighted, losses = loss(part.batch, part.weights)
                (weighted * processes.world).backward()
                summed += weight * losses[: part.truths].sum().item()
            else:
                total = weight * loss(part.to(processes.device))[0]
                (total * (processes.world / tokens)).backward()
                summed += total.item()
    return processes.sum(summed), torch.nn.utils.clip_grad_norm_(loss.parameters(), clip).item()


def check_finite(place: str, loss: float, norm: float, rate: float, pictures: Sequence[str], critical: bool) -> None:
    """Check a step's loss and gradient before it is taken.

    Args:
        place: the step, in words.
        loss: mean cross-entropy per token.
        norm: of the gradient.
        rate: the peak learning rate.
        pictures: names of the step's pictures.
        critical: whether the step is a self-critical one.

    Raises:
        ConfigError: one is not finite.
        EndedError: one is not finite in a self-critical step, so the model before it is kept.
    """
    if math.isfinite(loss + norm):
        return
    if critical:
        raise EndedError(f"it diverged in {place} (gradient norm {norm:g}); lower finetune.self_critical.learning_rate")
    raise ConfigError(
        f"params.yaml: finetune.learning_rate: with {rate:g} the training diverged in {place} (loss {loss:g}, gradient"
        f" norm {norm:g}, pictures {', '.join(pictures[:3])}, ...); lower it. The last good model is unchanged"
    )
