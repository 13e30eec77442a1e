"""Validation: the loss on the validation split, and generated captions with their CIDEr-D."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.config.sections.finetune import Finetune
from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.fluency import Endings, loop_share
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.inputs import Batch, caption_tokens
from pipeline.models.precision import autocast
from pipeline.training.data import TrainingData
from pipeline.training.loader import CaptionedPicture, batches, groups_of
from pipeline.training.optimization import CaptionLoss
from pipeline.training.processes import Processes

CAPTIONS_PER_PICTURE = 8  # the first ones, in the validation loss; hundreds in one row would need too much memory
GENERATION_BATCHES = 4  # size of a generation batch relative to a step's: there is no backward pass


@dataclass(frozen=True)
class Captions:
    """Generated captions of the first validation pictures.

    Attributes:
        texts: one per picture.
        cider: their mean CIDEr-D; NaN without captions.
        cider_error: standard error of that mean over the pictures.
        unfinished: share of captions that break off; NaN without captions or self-critical training.
        loops: share of captions that repeat themselves; NaN likewise.
    """

    texts: list[str]
    cider: float
    cider_error: float
    unfinished: float
    loops: float

    @property
    def distinct(self) -> float:
        """The share of captions that differ from each other; NaN without captions."""
        return len(set(self.texts)) / len(self.texts) if self.texts else math.nan


class Validation:
    """Measures a model on the validation split; all processes call its methods together.

    Args:
        checkpoint: the model in training.
        data: the validation split.
        settings: the params.
        processes: the processes that share the work.
        dtype: dtype of matrix products.
        stop_if_asked: called between batches; raises an exception to stop.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: TrainingData,
        settings: Finetune,
        processes: Processes,
        dtype: torch.dtype,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._checkpoint, self._settings, self._processes, self._dtype = checkpoint, settings, processes, dtype
        self._examples, self._pictures = data.validation, data.validation_pictures
        tokens = caption_tokens(checkpoint, (example.captions for example in data.validation), settings.max_tokens)
        self._captioned = [(i, captions[:CAPTIONS_PER_PICTURE]) for i, captions in enumerate(tokens)]
        self._tokenizer = tokenizer_for(example.captions for example in data.validation)
        self._endings: Endings | None = None  # what they measure is of interest for self-critical training
        if settings.self_critical.epochs:
            self._endings = Endings(self._tokenizer.words(c) for example in data.train for c in example.captions)
        self._loss = CaptionLoss(checkpoint.model, dtype)
        self._stop_if_asked = stop_if_asked

    @torch.inference_mode()
    def loss(self, max_batches: int | None = None) -> float:
        """Return the mean loss per token (nats) over the split's captions, or over its first batches."""
        self._checkpoint.model.eval()
        loss_sum, tokens_sum = 0.0, 0
        for _, batch in self._shared(groups_of(self._captioned, self._settings.batch_size)[:max_batches]):
            loss, tokens = self._loss(batch)
            loss_sum += loss.item()
            tokens_sum += int(tokens)
        return self._processes.sum(loss_sum) / self._processes.sum(tokens_sum)

    @torch.inference_mode()
    def captions(self) -> Captions:
        """Caption the first `finetune.validation_captions` pictures by greedy search."""
        self._checkpoint.model.eval()
        first = self._captioned[: self._settings.validation_captions]
        generated: list[tuple[int, list[str]]] = []
        for number, batch in self._shared(groups_of(first, GENERATION_BATCHES * self._settings.batch_size)):
            with autocast(self._processes.device, self._dtype):
                tokens = self._checkpoint.model.generate_captions(batch.pixel_values, batch.features, Decoding())
            generated.append((number, self._checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)))
        texts = [text.strip() for _, batch_texts in sorted(self._processes.gather(generated)) for text in batch_texts]
        return Captions(texts, *self._cider(texts), *self._broken(texts))

    def _shared(self, groups: Sequence[Sequence[CaptionedPicture]]) -> Iterator[tuple[int, Batch]]:
        """Yield this process's share of the batches, with their numbers."""
        world = self._processes.world
        mine = list(enumerate(groups))[self._processes.rank :: world]
        device = self._processes.device
        loader = batches(self._checkpoint, self._pictures, [group for _, group in mine], device)
        for turn in range(-(-len(groups) // world)):
            self._stop_if_asked()  # a collective operation: also called by processes without a batch in this turn
            if turn < len(mine):
                yield mine[turn][0], next(loader).to(device)

    def _broken(self, captions: Sequence[str]) -> tuple[float, float]:
        """Return the shares of captions that break off, and that repeat themselves."""
        if not captions or self._endings is None:
            return math.nan, math.nan
        words = [self._tokenizer.words(text) for text in captions]
        return self._endings.unfinished_share(words), loop_share(words)

    def _cider(self, captions: Sequence[str]) -> tuple[float, float]:
        """Return the mean over the pictures and its standard error."""
        if not captions:
            return math.nan, math.nan
        words = self._tokenizer.words
        references = [[words(c) for c in example.captions] for example in self._examples[: len(captions)]]
        scores = cider_d([words(caption) for caption in captions], references)
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return math.fsum(scores) / len(scores), error
