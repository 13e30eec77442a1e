"""Pictures -> captions. Everything that captions goes through here: evaluation, the command, the served model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pipeline.models.git.checkpoint import Checkpoint, load
from pipeline.models.precision import chosen, computing
from pipeline.runtime.progress import progress_bar
from pipeline.training.loader import collate, cropped, pixel_values


class Captioner:
    """A GIT checkpoint that is ready to caption."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = checkpoint.model.to(self._device).eval()
        self._dtype = chosen("auto", self._device)

    @classmethod
    def from_folder(cls, folder: Path) -> Captioner:
        """Load a checkpoint's folder.

        Raises:
            ConfigError: the folder has no GIT checkpoint.
        """
        return cls(load(folder))

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square picture that the model sees."""
        return self._checkpoint.image_size

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Image.Image], beams: int = 1, max_tokens: int | None = None) -> list[str]:
        """The likeliest caption that beam search finds, a picture (RGB, any size).

        Without `max_tokens` captions are at most as long as the checkpoint itself says.
        """
        longest = {} if max_tokens is None else {"max_length": max_tokens}
        return [found[0] for found in self._generate(pictures, num_beams=beams, do_sample=False, **longest)]

    def caption_all(
        self, pictures: Sequence[bytes], beams: int, max_tokens: int, batch_size: int, name: str
    ) -> list[str]:
        """The likeliest caption of each encoded picture, some at a time.

        Args:
            pictures: the files' bytes, of the data set.
            beams: captions that beam search keeps in play.
            max_tokens: captions are at most as long.
            batch_size: pictures captioned at a time.
            name: stands before the progress bar.
        """
        found: list[str] = []
        for first in progress_bar(range(0, len(pictures), batch_size), desc=name, unit=" batches"):
            some = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures[first : first + batch_size]]
            found += self.caption(some, beams=beams, max_tokens=max_tokens)
        return found

    @torch.inference_mode()
    def several(self, pictures: Sequence[Image.Image], count: int, seed: int = 0) -> list[list[str]]:
        """Up to `count` different captions a picture, sampled (top-p 0.9), the likeliest first.

        Twice as many are drawn, duplicates are removed, and the others ranked by the mean log-probability of
        their tokens; there may be fewer than `count`. Torch's global seed is set to `seed`.
        """
        torch.manual_seed(seed)
        found = self._generate(pictures, do_sample=True, top_p=0.9, num_return_sequences=2 * count)
        return self._ranked(pictures, [list(dict.fromkeys(captions)) for captions in found], count)

    def _ranked(self, pictures: Sequence[Image.Image], captions: list[list[str]], count: int) -> list[list[str]]:
        """The likeliest `count` captions of each picture, the likeliest first."""
        longest = self._model.config.max_position_embeddings
        tokens = [
            self._checkpoint.tokenizer(of_it, truncation=True, max_length=longest)["input_ids"] for of_it in captions
        ]
        batch = collate(self._checkpoint, cropped(self._checkpoint.image_processor, pictures), tokens).to(self._device)
        with computing(self._device, self._dtype):
            found = self._model.likelihood(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of)
        likelihoods = iter(found.tolist())
        ranked = [
            sorted(of_it, key={c: next(likelihoods) for c in of_it}.__getitem__, reverse=True) for of_it in captions
        ]
        return [of_it[:count] for of_it in ranked]

    def _generate(self, pictures: Sequence[Image.Image], **how: object) -> list[list[str]]:
        processor, tokenizer = self._checkpoint.image_processor, self._checkpoint.tokenizer
        inputs = pixel_values(processor, cropped(processor, pictures)).to(self._device)
        with computing(self._device, self._dtype):
            tokens = self._model.caption(inputs, **how)
        texts = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        each = len(texts) // len(pictures)
        return [texts[i : i + each] for i in range(0, len(texts), each)]
