"""Checks before the first step: the start checkpoint's loss is finite, and the largest batch fits into memory.

With self-critical training its largest batch is tried too: its samples have the greatest length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from pipeline.config.errors import ConfigError, is_out_of_memory
from pipeline.models.inputs import Batch
from pipeline.runtime.torch_memory import peak_memory
from pipeline.training.loader import CaptionedPicture, batches, epoch_captions, groups_of
from pipeline.training.optimization import CaptionLoss
from pipeline.training.random_states import unchanged_random_states
from pipeline.training.self_critical import Weighted
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
    duration = _duration(trainer, trainer.cross_entropy_steps, lambda: _try(trainer, dtype, largest))
    then = ""
    if trainer.sampler is not None:
        draw = partial(_with_samples, trainer, largest)
        more = trainer.steps - trainer.cross_entropy_steps
        longer = _duration(trainer, more, lambda: _try(trainer, dtype, largest, draw))
        then = f", then {more:,} self-critical steps, about {longer}"
    memory = "" if not needed else f", {needed / 1e9:.2g} GB of memory above the model's own"
    auto = " (auto)" if settings.epochs == "auto" else ""
    parts = f" in {trainer.state.parts} parts" if trainer.state.parts > 1 else ""
    return (
        f"trains {trainer.trained_parameters / 1e6:.3g} of {trainer.parameters / 1e6:.3g} million parameters in"
        f" {trainer.cross_entropy_steps:,} steps of {min(settings.batch_size, len(captioned))} pictures{parts},"
        f" {trainer.epochs} epochs{auto} of {trainer.steps_per_epoch:,}; about {duration}{then}{memory}"
    )


def _duration(trainer: Trainer, steps: int, part: Callable[[], object]) -> str:
    """Return how long steps take, in words, by the time of one part of a step."""
    start = time.monotonic()
    part()
    seconds = (time.monotonic() - start) * trainer.state.parts * steps
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(1, seconds):.0f} s"


def _fit(
    trainer: Trainer, dtype: torch.dtype, captioned: Sequence[CaptionedPicture]
) -> tuple[Sequence[CaptionedPicture], int]:
    """Choose the parts of a step if `finetune.accumulation` is `auto`: as few as fit into the memory of all processes.

    Returns:
        the largest part of the first epoch, and the bytes that it needs (0: unknown).

    Raises:
        ConfigError: one picture does not fit; or the parts that `finetune.accumulation` sets do not, but others do.
    """
    whole, first, sampler = trainer.settings.batch_size, trainer.state.parts, trainer.sampler
    too_large: list[int] = []  # pictures
    needed: int | None = None
    for parts in (n for n in range(first, whole + 1) if whole % n == 0):
        groups = groups_of(captioned, trainer.part_size(parts))
        largest = max(groups, key=lambda part: (len(part), sum(len(texts) for _, texts in part)))
        if too_large and len(largest) == too_large[-1]:
            continue
        needed = with_samples = _try(trainer, dtype, largest)
        if sampler is not None and needed is not None:
            longest = partial(sampler.longest, length=trainer.settings.max_tokens)
            with_samples = _try(trainer, dtype, largest, longest)
        if trainer.processes.any(with_samples is None):
            too_large.append(len(largest))
            continue
        if too_large and trainer.settings.accumulation != "auto":
            raise ConfigError(
                f"params.yaml: finetune.batch_size: {too_large[0]} pictures at a time do not fit into memory,"
                f" {len(largest)} do; set finetune.accumulation to {parts}: a step then takes its {whole} pictures in"
                f" {parts} parts, with the same result"
            )
        trainer.state.parts = parts
        return largest, max(needed or 0, with_samples or 0)
    if needed is not None:
        raise ConfigError(
            f"params.yaml: finetune.self_critical.samples: {trainer.settings.self_critical.samples} samples of"
            f" {trainer.settings.max_tokens} tokens do not fit into memory, even of one picture; lower it or"
            " finetune.max_tokens, or set finetune.gradient_checkpointing to true"
        )
    raise ConfigError(
        "params.yaml: finetune.captions_per_picture: not even one picture's captions fit into memory; lower it or"
        " finetune.max_tokens, or set finetune.gradient_checkpointing to true"
    )


def _with_samples(trainer: Trainer, captioned: Sequence[CaptionedPicture], batch: Batch) -> Weighted:
    """Return a part of a step with samples of the start checkpoint."""
    assert trainer.sampler is not None
    ((part,), *_) = trainer.sampler.weighted([i for i, _ in captioned], [batch], weight=1.0, tokens=1.0)
    return part


def _try(
    trainer: Trainer,
    dtype: torch.dtype,
    captioned: Sequence[CaptionedPicture],
    with_samples: Callable[[Batch], Weighted] | None = None,
) -> int | None:
    """Return the memory of a forward and a backward pass in bytes (0: unknown), or None if there is not enough.

    Args:
        trainer, dtype: as in `check`.
        captioned: the pictures of a part of a step, and their captions.
        with_samples: adds samples, for a self-critical step.
    """
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
                if with_samples is not None:
                    weighted = with_samples(batch)
                    loss, _ = compute_loss(weighted.batch, weighted.weights)
                else:
                    summed, tokens = compute_loss(batch.to(device))
                    loss = summed / tokens
                loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            trainer.optimizer.zero_grad()
            reserved.clear()
    return needed()
