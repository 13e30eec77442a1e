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
    scaler: torch.amp.GradScaler,
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
        scaler: of the loss; the gradient that is left in the parameters is no longer scaled.
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
                scaler.scale(weighted * processes.world).backward()
                summed += weight * losses[: part.truths].sum().item()
            else:
                total = weight * loss(part.to(processes.device))[0]
                scaler.scale(total * (processes.world / tokens)).backward()
                summed += total.item()
    scaler.unscale_(optimizer)
    return processes.sum(summed), torch.nn.utils.clip_grad_norm_(loss.parameters(), clip).item()


def is_overflow(scaler: torch.amp.GradScaler, loss: float, norm: float) -> bool:
    """Return whether a step's gradient exceeded the range of float16 because the loss was scaled.

    Such a step is skipped, and the next loss is scaled less. All processes have the same gradient, so they agree.

    Args:
        scaler: of the loss.
        loss: of the step; if it is not finite, no other scale helps.
        norm: of the gradient.
    """
    return math.isfinite(loss) and not math.isfinite(norm) and scaler.is_enabled() and scaler.get_scale() > 1


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
