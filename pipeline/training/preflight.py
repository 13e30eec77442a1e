"""Checks before the first step: the start checkpoint's loss is finite, and the largest batch fits into memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NoReturn

import torch

from pipeline.config.errors import ConfigError, is_out_of_memory
from pipeline.runtime.torch_memory import peak_memory
from pipeline.training.loader import CaptionedPicture, batches, epoch_captions, groups_of
from pipeline.training.optimization import CaptionLoss
from pipeline.training.random_states import unchanged_random_states
from pipeline.training.trainer import Trainer


def check(trainer: Trainer, dtype: torch.dtype) -> str:
    """Try two validation batches and the largest training batch; return a forecast of the training for the log.

    Neither weights nor random states change.

    Raises:
        ConfigError: the loss is not finite, or a batch does not fit into memory; names the largest that does.
    """
    settings = trainer.settings
    loss = trainer.validation.loss(max_batches=2)
    if not math.isfinite(loss):
        too_narrow = " or exceed the range of float16: set finetune.precision to float32, or"
        raise ConfigError(
            f"params.yaml: finetune.checkpoint: {settings.checkpoint} has a loss of {loss} before any step; its weights"
            f" are damaged{too_narrow if dtype == torch.float16 else ':'} download or copy it again"
        )
    captioned = epoch_captions(trainer.tokens, settings.seed, 1, trainer.captions_per_picture)
    parts = groups_of(captioned, trainer.part_size(settings.accumulation))
    largest = max(parts, key=lambda part: (len(part), sum(len(c) for _, captions in part for c in captions)))
    if (needed := _try(trainer, dtype, largest)) is None:
        _raise_largest_that_fits(trainer, dtype, largest)
    start = time.monotonic()
    _try(trainer, dtype, largest)
    seconds = (time.monotonic() - start) * settings.accumulation * trainer.cross_entropy_steps
    duration = f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(1, seconds):.0f} s"
    memory = "" if not needed else f", {needed / 1e9:.2g} GB of memory above the model's own"
    auto = " (auto)" if settings.epochs == "auto" else ""
    return (
        f"trains {trainer.trained_parameters / 1e6:.3g} of {trainer.parameters / 1e6:.3g} million parameters in"
        f" {trainer.cross_entropy_steps:,} steps of {min(settings.batch_size, len(captioned))} pictures,"
        f" {trainer.epochs} epochs{auto} of {trainer.steps_per_epoch:,}; about {duration}{memory}"
    )


def _try(trainer: Trainer, dtype: torch.dtype, captioned: Sequence[CaptionedPicture]) -> int | None:
    """Return the memory of a forward and a backward pass in bytes (0: unknown), or None if there is not enough."""
    device = trainer.processes.device
    compute_loss = CaptionLoss(trainer.model, dtype)
    with unchanged_random_states(device):
        trainer.model.train()
        try:
            (batch,) = batches(trainer.checkpoint, trainer.data.train_pictures(1), [captioned], device)
            with peak_memory(device) as needed:
                loss, tokens = compute_loss(batch.to(device))
                (loss / tokens).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            trainer.optimizer.zero_grad()
    return needed()


def _raise_largest_that_fits(trainer: Trainer, dtype: torch.dtype, captioned: Sequence[CaptionedPicture]) -> NoReturn:
    whole = trainer.settings.batch_size
    for parts in range(trainer.settings.accumulation + 1, whole + 1):
        size = trainer.part_size(parts)
        if whole % parts == 0 and size < len(captioned) and _try(trainer, dtype, captioned[:size]) is not None:
            raise ConfigError(
                f"params.yaml: finetune.batch_size: {len(captioned)} pictures at a time do not fit into memory, {size}"
                f" do; set finetune.accumulation to {parts}: a step then takes its {whole} pictures in {parts}"
                " parts, with the same result"
            )
    raise ConfigError(
        "params.yaml: finetune.captions_per_picture: not even one picture's captions fit into memory; lower it or"
        " finetune.max_tokens, or set finetune.gradient_checkpointing to true"
    )
