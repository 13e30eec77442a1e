"""Pictures -> captions. Evaluation, the command line and the served model all caption through this class."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.factory import load
from pipeline.models.inputs import caption_tokens, collate, normalize, resize_and_crop
from pipeline.models.precision import autocast, compute_dtype
from pipeline.runtime.progress import progress_bar


@dataclass(frozen=True)
class Scored:
    """A caption and its mean log-probability per token (nats)."""

    text: str
    score: float


class Captioner:
    """A checkpoint on its device, ready to caption."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = checkpoint.model.to(self._device).eval()
        self._dtype = compute_dtype("auto", self._device)

    @classmethod
    def from_folder(cls, folder: Path) -> Captioner:
        """Load a checkpoint's folder.

        Raises:
            ConfigError: the folder has no usable checkpoint.
        """
        return cls(load(folder))

    @property
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""
        return self._checkpoint.image_size

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Image.Image], beams: int = 1, max_tokens: int | None = None) -> list[str]:
        """Return the likeliest caption of each picture (RGB, any size).

        Args:
            pictures: the pictures.
            beams: width of beam search.
            max_tokens: maximum length of a caption; None uses the checkpoint's own.
        """
        return [captions[0] for captions in self._generate(pictures, Decoding(beams=beams, max_tokens=max_tokens))]

    def caption_all(
        self, pictures: Sequence[bytes], beams: int, max_tokens: int, batch_size: int, name: str
    ) -> list[str]:
        """Return the likeliest caption of each encoded picture, computed in batches.

        Args:
            pictures: encoded pictures of the data set.
            beams: width of beam search.
            max_tokens: maximum length of a caption.
            batch_size: pictures per batch.
            name: label of the progress bar.
        """
        captions: list[str] = []
        for first in progress_bar(range(0, len(pictures), batch_size), desc=name, unit=" batches"):
            batch = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures[first : first + batch_size]]
            captions += self.caption(batch, beams=beams, max_tokens=max_tokens)
        return captions

    @torch.inference_mode()
    def several(self, pictures: Sequence[Image.Image], count: int, seed: int = 0) -> list[list[str]]:
        """Return up to `count` different captions per picture, sampled (top-p 0.9), the likeliest first.

        Samples `2 * count` captions, drops duplicates and ranks the others by their mean log-probability per token.
        Sets torch's global seed to `seed`.
        """
        torch.manual_seed(seed)
        sampled = self._generate(pictures, Decoding(samples=2 * count, top_p=0.9))
        return self._rank(pictures, [list(dict.fromkeys(captions)) for captions in sampled], count)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """Return a picture at the size of the model's input, `(3, height, width)` uint8."""
        return resize_and_crop(self._checkpoint.image_processor, [picture])[0]

    @torch.inference_mode()
    def scored(
        self,
        prepared: Sequence[torch.Tensor],
        seeds: Sequence[int],
        *,
        count: int,
        beams: int,
        sampling: bool,
        looks: Callable[[torch.Tensor], None] | None = None,
    ) -> list[list[Scored]]:
        """Return up to `count` different captions per picture with their scores. A batch doesn't change an answer.

        The likeliest caption by beam search comes first; the others are sampled (top-p 0.9) and ranked by score. With
        `sampling` all are sampled, as in `several`. Sets torch's global seed.

        Args:
            prepared: pictures from `prepare`.
            seeds: random seed of each picture's samples.
            count: number of captions.
            beams: width of beam search.
            sampling: whether no caption comes from beam search.
            looks: receives the encoder's features, averaged over each picture, `(pictures, hidden)` float32.
        """
        resized = torch.stack(list(prepared))
        pixels = normalize(self._checkpoint.image_processor, resized).to(self._device)
        with autocast(self._device, self._dtype):
            features = self._model.encode(pixels)
        if looks:
            looks(features.float().mean(dim=1).cpu())
        found: list[list[Scored]] = [[] for _ in seeds]
        if not sampling:
            found = self._generate_scored(resized, features, Decoding(beams=beams))
        if sampling or count > 1:
            for index, seed in enumerate(seeds):  # each by itself, so that its random draws are its own
                torch.manual_seed(seed)
                one, decoding = slice(index, index + 1), Decoding(samples=2 * count, top_p=0.9)
                (samples,) = self._generate_scored(resized[one], features[one], decoding)
                samples.sort(key=lambda caption: caption.score, reverse=True)
                distinct: dict[str, Scored] = {}
                for caption in found[index] + samples:
                    distinct.setdefault(caption.text, caption)
                found[index] = list(distinct.values())[:count]
        return found

    def _generate_scored(self, resized: torch.Tensor, features: torch.Tensor, decoding: Decoding) -> list[list[Scored]]:
        """Return the captions of each picture with their scores, as they were generated."""
        with autocast(self._device, self._dtype):
            tokens, scores = self._model.generate_with_scores(features, decoding)
        texts = self._decode(tokens, len(features))
        if scores is None:
            return self._scored(resized, texts)
        numbers = iter(scores.tolist())
        return [[Scored(text, next(numbers)) for text in captions] for captions in texts]

    def _rank(self, pictures: Sequence[Image.Image], captions: list[list[str]], count: int) -> list[list[str]]:
        """Return the `count` likeliest captions of each picture, the likeliest first."""
        scored = self._scored(resize_and_crop(self._checkpoint.image_processor, pictures), captions)
        ranked = [sorted(texts, key=lambda caption: caption.score, reverse=True) for texts in scored]
        return [[caption.text for caption in texts[:count]] for texts in ranked]

    def _scored(self, resized: torch.Tensor, captions: list[list[str]]) -> list[list[Scored]]:
        """Return captions of resized pictures, `(pictures, 3, height, width)` uint8, with their scores."""
        tokens = caption_tokens(self._checkpoint, captions, self._model.max_tokens)
        batch = collate(self._checkpoint, resized, tokens).to(self._device)
        assert batch.pixel_values is not None
        with autocast(self._device, self._dtype):
            means = self._model.likelihood(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of)
        scores = iter(means.tolist())
        return [[Scored(text, next(scores)) for text in texts] for texts in captions]

    def _generate(self, pictures: Sequence[Image.Image], decoding: Decoding) -> list[list[str]]:
        """Return the captions of each picture."""
        processor = self._checkpoint.image_processor
        pixels = normalize(processor, resize_and_crop(processor, pictures)).to(self._device)
        with autocast(self._device, self._dtype):
            tokens = self._model.generate_captions(pixels, None, decoding)
        return self._decode(tokens, len(pictures))

    def _decode(self, tokens: torch.Tensor, pictures: int) -> list[list[str]]:
        """Return the texts of generated tokens, by picture."""
        texts = [text.strip() for text in self._checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        each = len(texts) // pictures
        return [texts[i : i + each] for i in range(0, len(texts), each)]
