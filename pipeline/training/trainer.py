"""The training loop. A training resumed from a state takes the same steps, bit for bit, as an uninterrupted one.

The order of pictures and the choice of captions depend only on the seed and the epoch's number; a state holds
everything else (see `pipeline/training/persistence.py`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import get_scheduler

from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Finetune
from pipeline.models.base import Checkpoint
from pipeline.models.inputs import Batch, caption_tokens
from pipeline.models.lora import inject_lora, merged_weights
from pipeline.runtime.progress import progress_bar
from pipeline.runtime.state_store import StateStore
from pipeline.runtime.torch_memory import memory_in_use
from pipeline.training.data import TrainingData
from pipeline.training.history import EpochMetrics, best_by_cider
from pipeline.training.loader import CaptionedPicture, batches, epoch_captions, groups_of
from pipeline.training.optimization import CaptionLoss, adamw, learning_rate
from pipeline.training.persistence import TrainingState, load_state, save_state
from pipeline.training.processes import Processes
from pipeline.training.validation import Validation

LOG_STEPS = 10  # steps between two logged values of step metrics
MIN_FOR_CIDER = 50  # captioned validation pictures; with fewer, CIDEr-D is too noisy to choose an epoch by
SAMPLES = 8  # validation pictures whose captions are shown after each epoch
_COLLAPSED = 10  # warn if this many pictures or more all get the same caption


class TrainingLogger(Protocol):
    """Receives the metrics and captions of a training."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics of a step or an epoch."""

    def samples(self, captions: Sequence[Sequence[str]], best_epoch: int) -> None:
        """Show captions of the first validation pictures, for each completed epoch; `best_epoch` is the kept one."""


class StoppedError(Exception):
    """The training was asked to stop, and has written a state to resume from."""


class Trainer:
    """Fine-tunes a checkpoint in place.

    Args:
        checkpoint: the model to train, on its device.
        data: the training and validation splits.
        settings: the params.
        processes: the processes that train together. Each takes its share of a step's pictures; apart from dropout
            masks, the step equals that of one process with all pictures.
        dtype: dtype of matrix products.
        store: where states are written.
        state_minutes: minutes between two states.
        name: of the stage, stands before every line that is printed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: TrainingData,
        settings: Finetune,
        processes: Processes,
        dtype: torch.dtype,
        store: StateStore,
        state_minutes: float,
        name: str = "finetune",
    ) -> None:
        self.checkpoint, self.data, self.settings, self.processes = checkpoint, data, settings, processes
        self.model, self.name = checkpoint.model, name
        self.tokens = caption_tokens(checkpoint, (example.captions for example in data.train), settings.max_tokens)
        if settings.freeze == "image_encoder":
            self.model.freeze_image_encoder()
        self.parameters = self.model.num_parameters()
        self.learning_rate = learning_rate(settings, self.model)
        if settings.lora.rank:
            inject_lora(self.model, settings.lora, self.model.lora_targets(settings.freeze == "none"))
            if settings.new_tokens:  # their embeddings are new, so low-rank updates of other layers are not enough
                for parameter in self.model.vocabulary_parameters():
                    parameter.requires_grad_(True)
        if settings.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.trained_parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._loss = processes.accelerator.prepare_model(CaptionLoss(self.model, dtype, settings.label_smoothing))
        self.optimizer = adamw(self.model, self.learning_rate, settings.weight_decay)
        self.steps_per_epoch = -(-len(data.train) // settings.batch_size)
        self.steps = settings.epochs * self.steps_per_epoch
        self.schedule = get_scheduler(
            settings.schedule, self.optimizer, round(settings.warmup * self.steps), self.steps
        )
        self.validation = Validation(checkpoint, data, settings, processes, dtype, self._stop_if_asked)
        if processes.rank:  # each process has its own dropout masks
            torch.manual_seed(settings.seed + processes.rank)
        self.state = TrainingState()
        self._store, self._state_seconds = store, 60 * state_minutes
        self._asked: Callable[[], bool] = lambda: False
        self._written = self._counted = time.monotonic()

    def fit(self, logger: TrainingLogger, asked_to_stop: Callable[[], bool]) -> list[EpochMetrics]:
        """Train to the end from the current state, and return the metrics of all epochs.

        Raises:
            StoppedError: it was asked to stop; a state was written before.
            ConfigError: a loss or gradient is not finite; no step was taken on it.
        """
        self._asked, state = asked_to_stop, self.state
        self._counted = time.monotonic()
        bar = progress_bar(
            total=self.steps, initial=state.step, desc=self.name, unit=" steps", shown=self.processes.is_first
        )
        while len(state.epochs) < self.settings.epochs and not self._is_out_of_patience():
            epoch = len(state.epochs) + 1
            self._train_epoch(epoch, logger, bar)
            metrics, captions = self._validate(epoch)
            state.epochs.append(metrics)
            state.samples.append(captions[:SAMPLES])
            state.loss_sum, state.tokens = 0.0, 0
            if self.processes.is_first and self.best_epoch is metrics:
                with self._store.new_best() as folder:
                    self.checkpoint.save(folder, merged_weights(self.model) if self.settings.lora.rank else None)
            logger.metrics(metrics.metrics(), epoch)
            logger.samples(state.samples, self.best_epoch.epoch)
            if self.processes.is_first:
                bar.write(metrics.log_line(self.settings.epochs, self.name))
            self._write_state_if_due()
        self._count_seconds()
        bar.close()
        return state.epochs

    @property
    def best_epoch(self) -> EpochMetrics:
        """The best completed epoch, by CIDEr-D (see `best_by_cider`) or by loss; the first of equal ones."""
        if self.selects_by_cider:
            return best_by_cider(self.state.epochs)
        return min(self.state.epochs, key=lambda epoch: epoch.validation_loss)

    @property
    def selects_by_cider(self) -> bool:
        """Whether the best epoch is chosen by CIDEr-D; otherwise by loss."""
        if self.settings.best_by == "auto":
            return min(len(self.data.validation), self.settings.validation_captions) >= MIN_FOR_CIDER
        return self.settings.best_by == "cider"

    @property
    def captions_per_picture(self) -> int | None:
        """Captions of a picture per epoch; None means all."""
        return None if self.settings.captions_per_picture == "all" else self.settings.captions_per_picture

    def part_size(self, parts: int) -> int:
        """Return the pictures that a process computes at a time if it splits its share of a step into parts."""
        return math.ceil(self.settings.batch_size / (parts * self.processes.world))

    def _is_out_of_patience(self) -> bool:
        """Whether the last `finetune.patience` epochs brought no improvement."""
        epochs, patience = self.state.epochs, self.settings.patience
        return patience > 0 and bool(epochs) and len(epochs) - self.best_epoch.epoch >= patience

    def _train_epoch(self, epoch: int, logger: TrainingLogger, bar: tqdm) -> None:
        """Train the rest of an epoch."""
        settings, state = self.settings, self.state
        self.model.train()
        done = state.step - (epoch - 1) * self.steps_per_epoch
        captioned = epoch_captions(self.tokens, settings.seed, epoch, self.captions_per_picture)
        since, pictures, captions = time.monotonic(), 0, 0
        for step, parts in self._batches(self.data.train_pictures(epoch), captioned[done * settings.batch_size :]):
            self._stop_if_asked()
            loss, tokens = self._step(step, parts)
            state.loss_sum += loss
            state.tokens += tokens
            state.step += 1
            pictures += len(step)
            captions += sum(len(texts) for _, texts in step)
            bar.update()
            if state.step % LOG_STEPS == 0:
                seconds = time.monotonic() - since
                logger.metrics(
                    {
                        "step/train_loss": loss / tokens,
                        "step/learning_rate": self.schedule.get_last_lr()[0],
                        "step/pictures_per_second": pictures / seconds,
                        "step/captions_per_second": captions / seconds,
                        "step/memory_gb": memory_in_use(self.processes.device) / 1e9,
                    },
                    state.step,
                )
                since, pictures, captions = time.monotonic(), 0, 0
            self._write_state_if_due()

    def _batches(
        self, pictures: Dataset[torch.Tensor], captioned: Sequence[CaptionedPicture]
    ) -> Iterator[tuple[Sequence[CaptionedPicture], list[Batch]]]:
        """Yield each step's pictures and this process's batches: one, or several if gradients are accumulated.

        If a process gets none of the last pictures, it gets a zero-weight sample so that collectives match.
        """
        rank, world = self.processes.rank, self.processes.world
        steps = groups_of(captioned, self.settings.batch_size)
        size = self.part_size(self.settings.accumulation)
        parts_of_steps = [groups_of(step[rank::world] or step[:1], size) for step in steps]
        loader = iter(batches(self.checkpoint, pictures, [part for parts in parts_of_steps for part in parts]))
        for step, parts in zip(steps, parts_of_steps, strict=True):
            yield step, list(itertools.islice(loader, len(parts)))

    def _step(self, captioned: Sequence[CaptionedPicture], parts: Sequence[Batch]) -> tuple[float, int]:
        """Take a step on the mean loss per token of all pictures; return the summed loss and the number of tokens."""
        settings, processes = self.settings, self.processes
        weight = float(processes.rank < len(captioned))
        tokens = processes.sum(weight * sum(int(batch.attention_mask[:, 1:].sum()) for batch in parts))
        self.optimizer.zero_grad()
        loss_sum = 0.0
        for last, batch in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
            with nullcontext() if last else processes.accelerator.no_sync(self._loss):
                loss = weight * self._loss(batch.to(processes.device))[0]
                # Data-parallel training averages gradients over processes; here they must be summed.
                (loss * (processes.world / tokens)).backward()
            loss_sum += loss.item()
        loss_sum = processes.sum(loss_sum)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip).item()
        if not math.isfinite(loss_sum + norm):
            names = ", ".join(self.data.train[i].file_name for i, _ in captioned[:3])
            raise ConfigError(
                f"params.yaml: finetune.learning_rate: with {self.learning_rate:g} the training diverged in step"
                f" {self.state.step + 1}, epoch {len(self.state.epochs) + 1} (loss {loss_sum / tokens:g}, gradient"
                f" norm {norm:g}, pictures {names}, ...); lower it. The last good model is unchanged"
            )
        self.optimizer.step()
        self.schedule.step()
        return loss_sum, int(tokens)

    def _validate(self, epoch: int) -> tuple[EpochMetrics, list[str]]:
        """Return the metrics of an epoch, and generated captions of validation pictures."""
        captions = self.validation.captions()
        texts = captions.texts
        if self.processes.is_first and len(texts) >= _COLLAPSED and len(set(texts)) == 1:
            tqdm.write(
                f"{self.name}: epoch {epoch}: the model generates {texts[0]!r} for each of {len(texts)} pictures;"
                " if that persists, lower finetune.learning_rate or train more epochs"
            )
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=self.state.loss_sum / self.state.tokens,
            validation_loss=self.validation.loss(),
            learning_rate=self.schedule.get_last_lr()[0],
            validation_cider=captions.cider,
            validation_cider_error=captions.cider_error,
            distinct_captions=captions.distinct,
        )
        return metrics, texts

    def resume(self) -> bool:
        """Resume from the newest undamaged state and remove damaged ones; return whether there was one."""
        folder = self._store.newest()
        self.processes.wait()  # before the first process removes anything
        if self.processes.is_first:
            for damaged in self._store.roll_back_to(folder):
                print(f"{self.name}: {damaged}: is damaged, so it is removed; the previous state is used, if any")
        if folder:
            self.state = load_state(folder, self.model, self.optimizer, self.schedule, self.processes)
        return folder is not None

    def write_state(self) -> None:
        """Write a state, and remove all but the newest two."""
        self._count_seconds()
        save_state(self._store, self.state, self.model, self.optimizer, self.schedule, self.processes)
        self._written = time.monotonic()

    def _count_seconds(self) -> None:
        """Add the time since the last call to the duration of the training, which a resumed one continues."""
        now = time.monotonic()
        self.state.seconds += now - self._counted
        self._counted = now

    def _write_state_if_due(self) -> None:
        if self.processes.any(time.monotonic() - self._written >= self._state_seconds):
            self.write_state()

    def _stop_if_asked(self) -> None:
        """Write a state and stop if any process was asked to."""
        if self.processes.any(self._asked()):
            self.write_state()
            raise StoppedError
