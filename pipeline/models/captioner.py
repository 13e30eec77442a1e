"""Pictures -> captions. Evaluation, the command line and the served model all caption through this class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.factory import load
from pipeline.models.inputs import caption_tokens, collate, normalize, resize_and_crop
from pipeline.models.precision import autocast, compute_dtype
from pipeline.runtime.progress import progress_bar


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

    def _rank(self, pictures: Sequence[Image.Image], captions: list[list[str]], count: int) -> list[list[str]]:
        """Return the `count` likeliest captions of each picture, the likeliest first."""
        tokens = caption_tokens(self._checkpoint, captions, self._model.max_tokens)
        resized = resize_and_crop(self._checkpoint.image_processor, pictures)
        batch = collate(self._checkpoint, resized, tokens).to(self._device)
        assert batch.pixel_values is not None
        with autocast(self._device, self._dtype):
            means = self._model.likelihood(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of)
        likelihoods = iter(means.tolist())
        ranked = [
            sorted(texts, key={text: next(likelihoods) for text in texts}.__getitem__, reverse=True)
            for texts in captions
        ]
        return [texts[:count] for texts in ranked]

    def _generate(self, pictures: Sequence[Image.Image], decoding: Decoding) -> list[list[str]]:
        """Return the captions of each picture."""
        processor, tokenizer = self._checkpoint.image_processor, self._checkpoint.tokenizer
        pixels = normalize(processor, resize_and_crop(processor, pictures)).to(self._device)
        with autocast(self._device, self._dtype):
            tokens = self._model.generate_captions(pixels, None, decoding)
        texts = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        each = len(texts) // len(pictures)
        return [texts[i : i + each] for i in range(0, len(texts), each)]
