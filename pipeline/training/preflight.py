"""Checks before the first step: the start checkpoint's loss is finite, and the largest batch fits into memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from pipeline.config.errors import ConfigError, is_out_of_memory
from pipeline.runtime.torch_memory import peak_memory
from pipeline.training.loader import CaptionedPicture, batches, epoch_captions, groups_of
from pipeline.training.optimization import CaptionLoss
from pipeline.training.random_states import unchanged_random_states
from pipeline.training.trainer import Trainer


def check(trainer: Trainer, dtype: torch.dtype) -> str:
    """Try two validation batches and the largest training batch; return a forecast of the training for the log.

    Neither weights nor random states change. With `finetune.accumulation: auto` the number of parts of a step is chosen
    here.

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
    largest, needed = _fit(trainer, dtype, captioned)
    start = time.monotonic()
    _try(trainer, dtype, largest)
    seconds = (time.monotonic() - start) * trainer.state.parts * trainer.cross_entropy_steps
    duration = f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(1, seconds):.0f} s"
    memory = "" if not needed else f", {needed / 1e9:.2g} GB of memory above the model's own"
    auto = " (auto)" if settings.epochs == "auto" else ""
    parts = f" in {trainer.state.parts} parts" if trainer.state.parts > 1 else ""
    return (
        f"trains {trainer.trained_parameters / 1e6:.3g} of {trainer.parameters / 1e6:.3g} million parameters in"
        f" {trainer.cross_entropy_steps:,} steps of {min(settings.batch_size, len(captioned))} pictures{parts},"
        f" {trainer.epochs} epochs{auto} of {trainer.steps_per_epoch:,}; about {duration}{memory}"
    )


def _fit(
    trainer: Trainer, dtype: torch.dtype, captioned: Sequence[CaptionedPicture]
) -> tuple[Sequence[CaptionedPicture], int]:
    """Choose the parts of a step if `finetune.accumulation` is `auto`: as few as fit into the memory of all processes.

    Returns:
        the largest part of the first epoch, and the bytes that it needs (0: unknown).

    Raises:
        ConfigError: one picture does not fit; or the parts that `finetune.accumulation` sets do not, but others do.
    """
    whole, first = trainer.settings.batch_size, trainer.state.parts
    too_large: list[int] = []  # pictures
    for parts in (n for n in range(first, whole + 1) if whole % n == 0):
        groups = groups_of(captioned, trainer.part_size(parts))
        largest = max(groups, key=lambda part: (len(part), sum(len(texts) for _, texts in part)))
        if too_large and len(largest) == too_large[-1]:
            continue
        needed = _try(trainer, dtype, largest)
        if trainer.processes.any(needed is None):
            too_large.append(len(largest))
            continue
        if too_large and trainer.settings.accumulation != "auto":
            raise ConfigError(
                f"params.yaml: finetune.batch_size: {too_large[0]} pictures at a time do not fit into memory,"
                f" {len(largest)} do; set finetune.accumulation to {parts}: a step then takes its {whole} pictures in"
                f" {parts} parts, with the same result"
            )
        trainer.state.parts = parts
        return largest, needed or 0
    raise ConfigError(
        "params.yaml: finetune.captions_per_picture: not even one picture's captions fit into memory; lower it or"
        " finetune.max_tokens, or set finetune.gradient_checkpointing to true"
    )


def _try(trainer: Trainer, dtype: torch.dtype, captioned: Sequence[CaptionedPicture]) -> int | None:
    """Return the memory of a forward and a backward pass in bytes (0: unknown), or None if there is not enough."""
    device = trainer.processes.device
    compute_loss = CaptionLoss(trainer.model, dtype)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    reserved: list[torch.Tensor] = []
    with unchanged_random_states(device):
        trainer.model.train()
        try:
            if device.type != "cpu":  # a CPU does not take memory that is not used
                # AdamW keeps two more numbers for each trained one, from the first step on.
                reserved += [torch.empty_like(p) for p in 2 * trained]
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
            reserved.clear()
    return needed()
