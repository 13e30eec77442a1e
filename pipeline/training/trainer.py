"""The training loop. A training resumed from a state takes the same steps, bit for bit, as an uninterrupted one.

The order of pictures and the choice of captions depend only on the seed and the epoch's number; a state holds
everything else (see `pipeline/training/persistence.py`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import get_scheduler

from pipeline.config.sections.finetune import Finetune
from pipeline.models import factory
from pipeline.models.base import Checkpoint
from pipeline.models.inputs import Batch, caption_tokens
from pipeline.models.lora import inject_lora, merged_weights, take_merged
from pipeline.models.precision import loss_scaler
from pipeline.runtime.progress import progress_bar
from pipeline.runtime.state_store import StateStore
from pipeline.training.data import TrainingData
from pipeline.training.descent import check_finite, descend, is_overflow
from pipeline.training.history import EpochMetrics, flaws, kept_epoch
from pipeline.training.loader import CaptionedPicture, batches, epoch_captions, groups_of
from pipeline.training.logger import TrainingLogger
from pipeline.training.optimization import CaptionLoss, adamw, epoch_count, learning_rate, self_critical_rate
from pipeline.training.persistence import TrainingState, is_self_critical, load_state, save_state
from pipeline.training.processes import Processes
from pipeline.training.self_critical import EndedError, Sampler, Weighted
from pipeline.training.step_metrics import StepMetrics, scaling_metrics
from pipeline.training.validation import Validation

MIN_FOR_CIDER = 50  # captioned validation pictures; with fewer, CIDEr-D is too noisy to choose an epoch by
SAMPLES = 8  # validation pictures whose captions are shown after each epoch
_COLLAPSED = 10  # warn if this many pictures or more all get the same caption


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
        self.scaler = loss_scaler(processes.device, dtype)
        self.steps_per_epoch = -(-len(data.train) // settings.batch_size)
        self.epochs = epoch_count(settings, len(data.train))
        self.cross_entropy_steps = self.epochs * self.steps_per_epoch
        self.steps = self.cross_entropy_steps + settings.self_critical.epochs * self.steps_per_epoch
        warmup = round(settings.warmup * self.cross_entropy_steps)
        self.schedule = get_scheduler(settings.schedule, self.optimizer, warmup, self.cross_entropy_steps)
        self.sampler: Sampler | None = None
        if settings.self_critical.epochs:
            self.sampler = Sampler(checkpoint, data.train, settings.self_critical, processes, dtype)
        self.validation = Validation(checkpoint, data, settings, processes, dtype, self._stop_if_asked)
        if processes.rank:  # each process has its own dropout masks
            torch.manual_seed(settings.seed + processes.rank)
        self.state = TrainingState(parts=1 if settings.accumulation == "auto" else settings.accumulation)
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
        while (epoch := self._next_epoch()) is not None:
            try:
                self._train_epoch(epoch, logger, bar)
            except EndedError as error:
                self._say(bar, f"self-critical training has ended: {error}. Epoch {self.best_epoch.epoch} is kept")
                break
            metrics, captions = self._validate(epoch)
            state.epochs.append(metrics)
            state.samples.append(captions[:SAMPLES])
            state.begin_epoch()
            if self.processes.is_first and self.best_epoch is metrics:
                with self._store.new_best() as folder:
                    self.checkpoint.save(folder, merged_weights(self.model) if self.settings.lora.rank else None)
            logger.metrics(metrics.metrics(), epoch)
            logger.samples(state.samples, self.best_epoch.epoch)
            self._say(bar, metrics.log_line(self.epochs + self.settings.self_critical.epochs))
            if reason := self._why_not_kept(metrics):
                self._say(bar, f"epoch {epoch} is not kept: {reason}")
            self._write_state_if_due()
        self._count_seconds()
        bar.close()
        return state.epochs

    @property
    def best_epoch(self) -> EpochMetrics:
        """The best completed epoch, see `kept_epoch`."""
        return kept_epoch(
            self.state.epochs,
            self.state.cross_entropy_epochs,
            self.selects_by_cider,
            self.settings.self_critical.least_distinct,
        )

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
        last = max(self.best_epoch.epoch, self.state.cross_entropy_epochs) if epochs else 0
        return patience > 0 and len(epochs) - last >= patience

    def _next_epoch(self) -> int | None:
        """Return the number of the next epoch, or None at the end; begin self-critical training if it is due."""
        state, settings = self.state, self.settings
        done, over = len(state.epochs), self._is_out_of_patience()
        if not state.cross_entropy_epochs:
            if done < self.epochs and not over:
                return done + 1
            if self.sampler is None:
                return None
            self._begin_self_critical()
            over = False
        more = done - state.cross_entropy_epochs < settings.self_critical.epochs
        return done + 1 if more and not over else None

    def _begin_self_critical(self) -> None:
        """Continue from the best epoch's weights with a new optimizer."""
        self.processes.wait()  # the first process has written them
        with torch.random.fork_rng(devices=[]):
            take_merged(self.model, factory.load(self._store.best).model.state_dict())
        self.state.cross_entropy_epochs = len(self.state.epochs)
        self._use_self_critical_optimizer()

    def _use_self_critical_optimizer(self) -> None:
        rate = self_critical_rate(self.settings, self.learning_rate)
        self.optimizer = adamw(self.model, rate, self.settings.weight_decay)
        self.schedule = get_scheduler("constant", self.optimizer)

    def _train_epoch(self, epoch: int, logger: TrainingLogger, bar: tqdm) -> None:
        """Train the rest of an epoch."""
        settings, state = self.settings, self.state
        self.model.train()
        done = state.step - (epoch - 1) * self.steps_per_epoch
        captioned = epoch_captions(self.tokens, settings.seed, epoch, self.captions_per_picture)
        metrics = StepMetrics(logger, self.processes.device)
        for step, parts in self._batches(self.data.train_pictures(epoch), captioned[done * settings.batch_size :]):
            self._stop_if_asked()
            loss, tokens = self._step(step, parts)
            state.loss_sum += loss
            state.tokens += tokens
            state.step += 1
            bar.update()
            rate = self.schedule.get_last_lr()[0]
            scaling = scaling_metrics(self.scaler, state.skipped_steps)
            metrics.log(state.step, step, {"train_loss": loss / tokens, "learning_rate": rate, **scaling})
            self._write_state_if_due()
        if state.cross_entropy_epochs and not state.advantage_sum:
            raise EndedError(
                "each picture's sampled captions score the same, so there is nothing to learn from; train more"
                " epochs before it, or on more pictures"
            )

    def _batches(
        self, pictures: Dataset[torch.Tensor], captioned: Sequence[CaptionedPicture]
    ) -> Iterator[tuple[Sequence[CaptionedPicture], list[Batch]]]:
        """Yield each step's pictures and this process's batches: one, or several if gradients are accumulated.

        If a process gets none of the last pictures, it gets a zero-weight sample so that collectives match.
        """
        rank, world = self.processes.rank, self.processes.world
        steps = groups_of(captioned, self.settings.batch_size)
        size = self.part_size(self.state.parts)
        parts_of_steps = [groups_of(step[rank::world] or step[:1], size) for step in steps]
        groups = [part for parts in parts_of_steps for part in parts]
        loader = batches(self.checkpoint, pictures, groups, self.processes.device)
        for step, parts in zip(steps, parts_of_steps, strict=True):
            yield step, list(itertools.islice(loader, len(parts)))

    def _step(self, captioned: Sequence[CaptionedPicture], parts: Sequence[Batch]) -> tuple[float, int]:
        """Take a step on the mean loss per token of all pictures; return the summed loss and the number of tokens.

        A step whose gradient exceeds the range of float16 is skipped, and the learning rate stays.
        """
        settings, processes, scaler = self.settings, self.processes, self.scaler
        weight = float(processes.rank < len(captioned))
        tokens = processes.sum(weight * sum(int(batch.attention_mask[:, 1:].sum()) for batch in parts))
        critical = bool(self.state.cross_entropy_epochs)
        given = self._with_samples(captioned, parts, weight, tokens) if critical else parts
        clip = settings.gradient_clip
        loss_sum, norm = descend(self._loss, given, weight, tokens, processes, self.optimizer, scaler, clip)
        place = f"step {self.state.step + 1}, epoch {len(self.state.epochs) + 1}"
        names = [self.data.train[i].file_name for i, _ in captioned[:3]]
        if is_overflow(scaler, loss_sum, norm):
            self.state.skipped_steps += 1
        else:
            check_finite(place, loss_sum / tokens, norm, self.learning_rate, names, critical)
            scaler.step(self.optimizer)
            self.schedule.step()
        scaler.update()
        return loss_sum, int(tokens)

    def _with_samples(
        self, captioned: Sequence[CaptionedPicture], parts: Sequence[Batch], weight: float, tokens: float
    ) -> list[Weighted]:
        """Return this process's parts of a self-critical step, see `Sampler.weighted`."""
        assert self.sampler is not None
        mine = captioned[self.processes.rank :: self.processes.world] or captioned[:1]
        weighted, reward, drawn, advantage = self.sampler.weighted([i for i, _ in mine], parts, weight, tokens)
        self.state.reward_sum += reward
        self.state.samples_drawn += drawn
        self.state.advantage_sum += advantage
        return weighted

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
            unfinished=captions.unfinished,
            loops=captions.loops,
            reward=self.state.reward_sum / self.state.samples_drawn if self.state.samples_drawn else math.nan,
        )
        return metrics, texts

    def resume(self) -> bool:
        """Resume from the newest undamaged state and remove damaged ones; return whether there was one.

        Steps keep the number of parts they had, so that they stay the same bit for bit, unless memory has shrunk.
        """
        folder = self._store.newest()
        self.processes.wait()  # before the first process removes anything
        if self.processes.is_first:
            for damaged in self._store.roll_back_to(folder):
                print(f"{self.name}: {damaged}: is damaged, so it is removed; the previous state is used, if any")
        if folder:
            if is_self_critical(folder):
                self._use_self_critical_optimizer()
            fits_now = self.state.parts
            self.state = load_state(folder, self.model, self.optimizer, self.schedule, self.scaler, self.processes)
            if fits_now > self.state.parts and self.processes.is_first:
                print(f"{self.name}: memory has shrunk: steps have {fits_now} parts now, not {self.state.parts}")
            self.state.parts = max(fits_now, self.state.parts)
        return folder is not None

    def write_state(self) -> None:
        """Write a state, and remove all but the newest two."""
        self._count_seconds()
        save_state(self._store, self.state, self.model, self.optimizer, self.schedule, self.scaler, self.processes)
        self._written = time.monotonic()

    def _say(self, bar: tqdm, line: str) -> None:
        if self.processes.is_first:
            bar.write(f"{self.name}: {line}")

    def _why_not_kept(self, epoch: EpochMetrics) -> str:
        """Return why a self-critical epoch can't be kept, or nothing."""
        before = self.state.epochs[: self.state.cross_entropy_epochs]
        if not epoch.is_self_critical or not before:
            return ""
        least = self.settings.self_critical.least_distinct
        return flaws(epoch, kept_epoch(before, 0, self.selects_by_cider, least), least)

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
