"""The training loop: set up, fit, validate; and the states from which it goes on as if nothing had happened.

A state is the weights, the optimizer, the schedule, the place in the epoch, every random state and the best epoch so
far. The order of pictures and the draw of captions follow from the seed and the epoch's number alone. So a training
that was cut off and goes on from a state takes the same steps, bit for bit, as one that was not.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import get_scheduler

from pipeline.config.errors import ConfigError, is_out_of_memory
from pipeline.config.sections.finetune import Finetune
from pipeline.data.dataset import Example
from pipeline.evaluation.metrics import cider_d
from pipeline.evaluation.ptb.tokens import tokenize as words_of
from pipeline.models.git.checkpoint import Checkpoint
from pipeline.models.git.lora import add_lora, plain_weights
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.precision import computing
from pipeline.runtime.progress import progress_bar
from pipeline.training.history import Epoch, best_by_cider
from pipeline.training.loader import Batch, Captioned, batches, epoch_captions, groups_of, tokenize
from pipeline.training.memory import memory_in_use, peak_memory
from pipeline.training.optimization import adamw, summed_loss
from pipeline.training.state import States

LOG_STEPS = 10  # the step curves have a point for each so many steps
HELD_OUT_CAPTIONS = 8  # of each validation picture, the first; hundreds in one row would cost too much memory
FEWEST_FOR_CIDER = 50  # validation pictures that are captioned; of fewer CIDEr-D says too little to choose an epoch by
CAPTIONED_AT_A_TIME = 4  # times the pictures of a step: without a backward pass there is room for them
SAMPLES = 8  # validation pictures whose captions are shown after each epoch
_COLLAPSED = 10  # with so many pictures or more, one caption for all of them is no accident


class Watch(Protocol):
    """Who is told how a training goes."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Figures of a step or an epoch."""

    def samples(self, captions: Sequence[Sequence[str]]) -> None:
        """What the model said of the first validation pictures after each epoch that has ended."""


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: steps of the optimizer that were taken.
        epochs: what those that have ended came to.
        loss_sum: of the epoch that goes on, in nats.
        tokens: of the epoch that goes on.
        samples: for each epoch that has ended the captions of the first validation pictures.
    """

    step: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    loss_sum: float = 0.0
    tokens: int = 0
    samples: list[list[str]] = field(default_factory=list)


class StoppedError(Exception):
    """It was asked to stop, and has written a state to go on from."""


class Training:
    """A fine-tuning of a checkpoint, in place.

    Args:
        checkpoint: what is trained.
        pictures: gives those of the training split in an epoch, or their features.
        held_out: the pictures of the validation split, or their features.
        train: the training examples.
        validation: the validation examples.
        settings: the params.
        accelerator: the processes that train together, and the device of this one. Each takes its share of a step's
            pictures; the step is that of one process with all of them, but for the drawing of dropout.
        dtype: that it is computed in.
        states: where its states are kept.
        state_minutes: minutes between two states.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        pictures: Callable[[int], Dataset[torch.Tensor]],
        held_out: Dataset[torch.Tensor],
        train: Sequence[Example],
        validation: Sequence[Example],
        settings: Finetune,
        accelerator: Accelerator,
        dtype: torch.dtype,
        states: States,
        state_minutes: float,
    ) -> None:
        self._checkpoint, self._settings, self._states = checkpoint, settings, states
        self._state_seconds = 60 * state_minutes
        self._accelerator, self._device, self._dtype = accelerator, accelerator.device, dtype
        self._rank: int = accelerator.process_index
        self._world: int = accelerator.num_processes
        self._pictures, self._held_out = pictures, held_out
        self._train, self._validation = train, validation
        self._tokens = tokenize(checkpoint, train, settings.max_tokens)
        held_out_tokens = tokenize(checkpoint, validation, settings.max_tokens)
        self._held_out_tokens = [(i, of_it[:HELD_OUT_CAPTIONS]) for i, of_it in enumerate(held_out_tokens)]
        self._model = checkpoint.model.to(self._device)
        if settings.freeze == "image_encoder":
            self._model.git.image_encoder.requires_grad_(False)
        self.parameters = self._model.num_parameters()
        if settings.lora.rank:
            add_lora(self._model, settings.lora, image_encoder=settings.freeze == "none")
        if settings.gradient_checkpointing:
            self._model.gradient_checkpointing_enable()
        self.trained_parameters = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self._loss = accelerator.prepare_model(_Loss(self._model, dtype, settings.label_smoothing))
        self._optimizer = adamw(self._model, settings.learning_rate, settings.weight_decay)
        self.steps_an_epoch = -(-len(train) // settings.batch_size)
        self.steps = settings.epochs * self.steps_an_epoch
        self._schedule = get_scheduler(
            settings.schedule, self._optimizer, round(settings.warmup * self.steps), self.steps
        )
        if self._rank:  # dropout of their own
            torch.manual_seed(settings.seed + self._rank)
        self.progress = Progress()
        self._asked: Callable[[], bool] = lambda: False
        self._written = time.monotonic()

    # Fit ---------------------------------------------------------------------------------------------------------

    def fit(self, watch: Watch, asked_to_stop: Callable[[], bool]) -> list[Epoch]:
        """Train to the end, or from the newest state on; gives what each epoch came to.

        Raises:
            StoppedError: it was asked to; a state was written before.
            ConfigError: a loss or gradient that is not finite; nothing was learned from it.
        """
        self._asked, progress = asked_to_stop, self.progress
        bar = progress_bar(
            total=self.steps, initial=progress.step, desc="finetune", unit=" steps", shown=self._rank == 0
        )
        while len(progress.epochs) < self._settings.epochs and not self._is_stale():
            epoch = len(progress.epochs) + 1
            self._train_epoch(epoch, watch, bar)
            ended, captions = self._validate(epoch)
            progress.epochs.append(ended)
            progress.samples.append(captions[:SAMPLES])
            progress.loss_sum, progress.tokens = 0.0, 0
            if self._rank == 0 and self.best_epoch is ended:
                with self._states.new_best() as folder:
                    self._checkpoint.save(folder, plain_weights(self._model) if self._settings.lora.rank else None)
            watch.metrics(ended.metrics(), epoch)
            watch.samples(progress.samples)
            if self._rank == 0:
                bar.write(ended.in_words(self._settings.epochs))
            self._write_state_if_due()
        bar.close()
        return progress.epochs

    @property
    def best_epoch(self) -> Epoch:
        """The best of those that have ended, by CIDEr-D (see `best_by_cider`) or by loss; of equal ones the first."""
        if self.by_cider:
            return best_by_cider(self.progress.epochs)
        return min(self.progress.epochs, key=lambda epoch: epoch.validation_loss)

    @property
    def by_cider(self) -> bool:
        """Whether epochs are judged by CIDEr-D; else by loss."""
        if self._settings.best_by == "auto":
            return min(len(self._validation), self._settings.validation_captions) >= FEWEST_FOR_CIDER
        return self._settings.best_by == "cider"

    def _is_stale(self) -> bool:
        """Whether no epoch was better for as many as patience allows."""
        epochs, patience = self.progress.epochs, self._settings.patience
        return patience > 0 and bool(epochs) and len(epochs) - self.best_epoch.epoch >= patience

    def _train_epoch(self, epoch: int, watch: Watch, bar: tqdm) -> None:
        """What is left of an epoch."""
        settings, progress = self._settings, self.progress
        self._model.train()
        if settings.freeze == "image_encoder":
            self._model.git.image_encoder.eval()  # no dropout: what it says is the same each time
        each = None if settings.captions_per_picture == "all" else settings.captions_per_picture
        done = progress.step - (epoch - 1) * self.steps_an_epoch
        captioned = epoch_captions(self._tokens, settings.seed, epoch, each)[done * settings.batch_size :]
        since, pictures, captions = time.monotonic(), 0, 0
        for some, batch in self._batches(self._pictures(epoch), captioned):
            self._end_if_asked()
            loss, tokens = self._step(some, batch)
            progress.loss_sum += loss
            progress.tokens += tokens
            progress.step += 1
            pictures += len(some)
            captions += sum(len(of_it) for _, of_it in some)
            bar.update()
            if progress.step % LOG_STEPS == 0:
                seconds = time.monotonic() - since
                watch.metrics(
                    {
                        "step/train_loss": loss / tokens,
                        "step/learning_rate": self._schedule.get_last_lr()[0],
                        "step/pictures_per_second": pictures / seconds,
                        "step/captions_per_second": captions / seconds,
                        "step/memory_gb": memory_in_use(self._device) / 1e9,
                    },
                    progress.step,
                )
                since, pictures, captions = time.monotonic(), 0, 0
            self._write_state_if_due()

    def _batches(
        self, pictures: Dataset[torch.Tensor], captioned: Sequence[Captioned]
    ) -> Iterator[tuple[Sequence[Captioned], list[Batch]]]:
        """Each step's pictures, and this process's batches of them: one, or as many as are accumulated.

        Where a process gets none of the last pictures it gets one that does not count, to keep step with the others.
        """
        steps = groups_of(captioned, self._settings.batch_size)
        size = self._part(self._settings.accumulation)
        parts = [groups_of(some[self._rank :: self._world] or some[:1], size) for some in steps]
        loader = iter(batches(self._checkpoint, pictures, [part for of_it in parts for part in of_it]))
        for some, of_it in zip(steps, parts, strict=True):
            yield some, list(itertools.islice(loader, len(of_it)))

    def _part(self, parts: int) -> int:
        """Pictures that are computed at a time, where a process computes its share of a step in so many parts."""
        return math.ceil(self._settings.batch_size / (parts * self._world))

    def _step(self, some: Sequence[Captioned], parts: Sequence[Batch]) -> tuple[float, int]:
        """One step on the mean loss a token of all pictures; gives the summed loss and the number of tokens."""
        settings = self._settings
        counts = float(self._rank < len(some))
        mine = counts * sum(int(batch.attention_mask[:, 1:].sum()) for batch in parts)
        tokens = self._summed(mine)
        self._optimizer.zero_grad()
        loss_sum = 0.0
        for last, batch in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
            with nullcontext() if last else self._accelerator.no_sync(self._loss):
                loss = counts * self._loss(batch.to(self._device))
                # Gradients are averaged over processes, and are wanted summed.
                (loss * (self._world / tokens)).backward()
            loss_sum += loss.item()
        loss_sum = self._summed(loss_sum)
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.gradient_clip).item()
        if not math.isfinite(loss_sum + norm):
            names = ", ".join(self._train[i].file_name for i, _ in some[:3])
            raise ConfigError(
                f"params.yaml: finetune.learning_rate: with {settings.learning_rate:g} the training diverged in step"
                f" {self.progress.step + 1}, epoch {len(self.progress.epochs) + 1} (loss {loss_sum / tokens:g}, length"
                f" of the gradient {norm:g}, pictures {names}, ...); lower it. The last good model is in place"
            )
        self._optimizer.step()
        self._schedule.step()
        return loss_sum, int(tokens)

    def _summed(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self._world == 1:
            return value
        total = self._accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self._device))
        return float(total)

    def _end_if_asked(self) -> None:
        """Write a state and end, where a process was asked to."""
        if self._one_says(self._asked()):
            self.write_state()
            raise StoppedError

    def _one_says(self, said: bool) -> bool:
        """Whether a process says so: all of them do the same."""
        return self._summed(float(said)) > 0

    # Validate ----------------------------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> tuple[Epoch, list[str]]:
        """What an epoch came to on the validation split, and what the model says of its pictures."""
        captions = self.captions()
        if self._rank == 0 and len(captions) >= _COLLAPSED and len(set(captions)) == 1:
            tqdm.write(
                f"finetune: epoch {epoch}: the model says {captions[0]!r} of each of {len(captions)} pictures;"
                " where that goes on, lower finetune.learning_rate or train more epochs"
            )
        cider, error = self._cider(captions)
        ended = Epoch(
            epoch=epoch,
            train_loss=self.progress.loss_sum / self.progress.tokens,
            validation_loss=self.validation_loss(),
            learning_rate=self._schedule.get_last_lr()[0],
            validation_cider=cider,
            validation_cider_error=error,
            distinct_captions=len(set(captions)) / len(captions) if captions else math.nan,
        )
        return ended, captions

    @torch.inference_mode()
    def validation_loss(self, most: int | None = None) -> float:
        """The mean loss a token over the captions of the validation split, or of its first `most` batches."""
        self._model.eval()
        loss_sum, tokens_sum = 0.0, 0
        for _, batch in self._shared(groups_of(self._held_out_tokens, self._settings.batch_size)[:most]):
            loss, tokens = summed_loss(self._model, batch, self._dtype)
            loss_sum += loss.item()
            tokens_sum += int(tokens)
        return self._summed(loss_sum) / self._summed(tokens_sum)

    @torch.inference_mode()
    def captions(self) -> list[str]:
        """What the model says of the first validation pictures, the likeliest word each time."""
        self._model.eval()
        few = self._held_out_tokens[: self._settings.validation_captions]
        found: list[tuple[int, list[str]]] = []
        for number, batch in self._shared(groups_of(few, CAPTIONED_AT_A_TIME * self._settings.batch_size)):
            with computing(self._device, self._dtype):
                tokens = self._model.caption(batch.pixel_values, features=batch.features, do_sample=False)
            found.append((number, self._checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)))
        return [caption.strip() for _, of_it in sorted(gather_object(found)) for caption in of_it]

    def _shared(self, groups: Sequence[Sequence[Captioned]]) -> Iterator[tuple[int, Batch]]:
        """The share of the validation batches that is this process's, with their numbers; it may end between them."""
        mine = list(enumerate(groups))[self._rank :: self._world]
        loader = iter(batches(self._checkpoint, self._held_out, [group for _, group in mine]))
        for turn in range(-(-len(groups) // self._world)):
            self._end_if_asked()  # all together, those too that have no batch this turn
            if turn < len(mine):
                yield mine[turn][0], next(loader).to(self._device)

    def _cider(self, captions: Sequence[str]) -> tuple[float, float]:
        """The mean over the pictures and its standard error."""
        if not captions:
            return math.nan, math.nan
        references = [[words_of(c) for c in example.captions] for example in self._validation[: len(captions)]]
        scores = cider_d([words_of(caption) for caption in captions], references)
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return math.fsum(scores) / len(scores), error

    # Before the first step -----------------------------------------------------------------------------------------

    def check(self) -> str:
        """Try two validation batches and the largest training batch; gives in words what training will take.

        Neither weights nor random states are changed.

        Raises:
            ConfigError: the loss is not finite, or a batch does not fit into memory; names the largest that does.
        """
        loss = self.validation_loss(most=2)
        if not math.isfinite(loss):
            raise ConfigError(
                f"params.yaml: finetune.checkpoint: {self._settings.checkpoint} has a loss of {loss} before any step;"
                " its weights are damaged: bring it again"
            )
        settings = self._settings
        each = None if settings.captions_per_picture == "all" else settings.captions_per_picture
        captioned = epoch_captions(self._tokens, settings.seed, 1, each)
        parts = groups_of(captioned, self._part(settings.accumulation))
        largest = max(parts, key=lambda part: (len(part), sum(len(c) for _, of_it in part for c in of_it)))
        if (needed := self._tried(largest)) is None:
            self._tell_what_fits(largest)
        start = time.monotonic()
        self._tried(largest)
        seconds = (time.monotonic() - start) * settings.accumulation * self.steps
        long = f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(1, seconds):.0f} s"
        memory = "" if not needed else f", {needed / 1e9:.2g} GB of memory above the model's own"
        return (
            f"trains {self.trained_parameters / 1e6:.3g} of {self.parameters / 1e6:.3g} million parameters in"
            f" {self.steps:,} steps of {min(settings.batch_size, len(captioned))} pictures, {settings.epochs} epochs of"
            f" {self.steps_an_epoch:,}; about {long}{memory}"
        )

    def _tried(self, some: Sequence[Captioned]) -> int | None:
        """The bytes that a forward and a backward pass need (0: unknown); None where they are not there."""
        device = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=device):
            self._model.train()
            try:
                (batch,) = batches(self._checkpoint, self._pictures(1), [some])
                with peak_memory(self._device) as needed:
                    loss, tokens = summed_loss(self._model, batch.to(self._device), self._dtype)
                    (loss / tokens).backward()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return None
            finally:
                self._optimizer.zero_grad()
        return needed()

    def _tell_what_fits(self, some: Sequence[Captioned]) -> NoReturn:
        whole = self._settings.batch_size
        for parts in range(self._settings.accumulation + 1, whole + 1):
            size = self._part(parts)
            if whole % parts == 0 and size < len(some) and self._tried(some[:size]) is not None:
                raise ConfigError(
                    f"params.yaml: finetune.batch_size: {len(some)} pictures at a time do not fit into memory, {size}"
                    f" do; set finetune.accumulation to {parts}: a step then takes its {whole} pictures in {parts}"
                    " parts, with the same meaning"
                )
        raise ConfigError(
            "params.yaml: finetune.captions_per_picture: not even one picture's captions fit into memory; lower it or"
            " finetune.max_tokens, or set finetune.gradient_checkpointing to true"
        )

    # States ------------------------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Go on from the newest state that is whole, and remove those that are not; gives whether there is one."""
        state = self._states.newest()
        self._accelerator.wait_for_everyone()  # before one of them removes anything
        if self._rank == 0:
            for damaged in self._states.go_back_to(state):
                print(
                    f"finetune: {damaged}: is damaged, so it is removed; the state before it is used, if there is one"
                )
        if state:
            self._read_state(state)
        return state is not None

    def write_state(self) -> None:
        """Write a state, and remove all but the newest."""
        random = gather_object([_random_states(self._device)])

        def fill(place: Path) -> None:
            save_model(self._model, str(place / "model.safetensors"))
            save_file(self._optimizer_tensors(), place / "optimizer.safetensors")
            for rank, of_it in enumerate(random):
                save_file(of_it, place / f"random-{rank}.safetensors")
            state = {"progress": asdict(self.progress), "schedule": self._schedule.state_dict()}
            (place / "state.json").write_text(json.dumps(state), encoding="utf-8")

        if self._rank == 0:
            parameters = list(self._model.parameters())  # AdamW keeps two numbers for each that is trained
            size = sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in parameters)
            self._states.write(self.progress.step, fill, size)
        self._accelerator.wait_for_everyone()
        self._written = time.monotonic()

    def _write_state_if_due(self) -> None:
        if self._one_says(time.monotonic() - self._written >= self._state_seconds):
            self.write_state()

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        states = self._optimizer.state_dict()["state"]
        return {f"{i}.{key}": value.contiguous() for i, of_it in states.items() for key, value in of_it.items()}

    def _read_state(self, folder: Path) -> None:
        load_model(self._model, str(folder / "model.safetensors"), device=str(self._device))
        tensors: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in load_file(folder / "optimizer.safetensors").items():
            index, _, key = name.partition(".")
            tensors.setdefault(int(index), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": tensors, "param_groups": groups})
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self._schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        progress = state["progress"]
        self.progress = Progress(**{**progress, "epochs": [Epoch(**epoch) for epoch in progress["epochs"]]})
        _set_random_states(load_file(folder / f"random-{self._rank}.safetensors"), self._device)


class _Loss(torch.nn.Module):
    """The summed loss of a batch as a module's forward pass, which is what processes that train together need."""

    def __init__(self, model: GitForCausalLM, dtype: torch.dtype, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._how = (dtype, label_smoothing)

    def forward(self, batch: Batch) -> torch.Tensor:
        return summed_loss(self.model, batch, *self._how)[0]


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
