"""Pictures -> captions. Evaluation, the command line and the served model all caption through this class.

A caption is the likeliest by beam search or, with an index of the training pictures, a candidate that agrees with other
captions (see `pipeline/evaluation/consensus.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import normalize as to_length_1

from pipeline.config.errors import ConfigError
from pipeline.config.sections.evaluate import DecodingSettings, GenerationSettings
from pipeline.evaluation.consensus import Candidates, ranked
from pipeline.models.attention import Attention, by_word
from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.device import best_device
from pipeline.models.factory import load
from pipeline.models.inputs import caption_tokens, collate, normalize, resize_and_crop
from pipeline.models.neighbours import Neighbours
from pipeline.models.precision import autocast, captioning_dtype
from pipeline.models.scored import Scored, best
from pipeline.models.threads import suit_threads
from pipeline.runtime.progress import progress_bar

PLAIN = GenerationSettings(
    beams=1,
    length_penalty=1.0,
    no_repeat_ngram_size=0,
    min_tokens=0,
    temperature=1.0,
    top_p=0.9,
    top_k=50,
    prompt="",
)
_ENCODED_TOGETHER = 8  # always as many, so that the last bits of a picture's features do not depend on the others


class Captioner:
    """A checkpoint on its device, ready to caption.

    Attributes:
        checkpoint: model, image processor and tokenizer.
        neighbours: the training pictures that captions are chosen with; None for beam search.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._device = best_device()
        if self._device.type == "cpu":
            suit_threads(checkpoint.model.num_parameters())
        self._model = checkpoint.model.to(self._device).eval()
        self._dtype = captioning_dtype(self._device)
        self.generate_by(PLAIN)
        self._decoding: DecodingSettings | None = None
        self.neighbours: Neighbours | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Captioner:
        """Load a checkpoint's folder.

        Raises:
            ConfigError: the folder has no usable checkpoint.
        """
        return cls(load(folder))

    def generate_by(self, generation: GenerationSettings) -> None:
        """Generate captions in this way from now on; the width of beam search is an argument of each call.

        Raises:
            ConfigError: the prompt leaves no room for a caption.
        """
        prompt = self.checkpoint.tokenizer(generation.prompt, add_special_tokens=False)["input_ids"]
        most = self._model.max_tokens - 3  # the begin mark, a word and the end mark
        if len(prompt) > most:
            raise ConfigError(
                f"params.yaml: evaluate.generation.prompt: has {len(prompt)} tokens, but this model takes {most};"
                " shorten it"
            )
        self._generation, self._prompt = generation, tuple(prompt)

    def choose_by(self, decoding: DecodingSettings, neighbours: Neighbours) -> None:
        """Choose captions in this way from now on. A new captioner takes the likeliest caption by beam search.

        Args:
            decoding: how captions are chosen.
            neighbours: the training pictures.
        """
        self._decoding, self.neighbours = (decoding, neighbours) if decoding.compares else (None, None)

    @property
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""
        return self.checkpoint.image_size

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Image.Image], beams: int = 1, max_tokens: int | None = None) -> list[str]:
        """Return a caption of each picture (RGB, any size).

        Args:
            pictures: the pictures.
            beams: width of beam search.
            max_tokens: maximum length of a caption; None uses the checkpoint's own.
        """
        if self._decoding is not None:
            resized = resize_and_crop(self.checkpoint.image_processor, pictures)
            return [texts[0] for texts in self._chosen(resized, self._encode(resized), beams, max_tokens)]
        return [captions[0] for captions in self._generate(pictures, self._search(beams, max_tokens))]

    def caption_encoded(self, pictures: Sequence[bytes], beams: int, max_tokens: int) -> list[str]:
        """Return a caption of each encoded picture of the data set; see `caption`."""
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
        return self.caption(opened, beams=beams, max_tokens=max_tokens)

    @property
    def attends(self) -> bool:
        """Whether `attention` works with this model."""
        return self._model.attends

    @torch.inference_mode()
    def attention(self, picture: Image.Image, caption: str) -> Attention:
        """Return where the model looks in a picture while it says a caption.

        The weights of a word's pieces are averaged.
        """
        prepared = self.prepare(picture)
        encoded = self.checkpoint.tokenizer(caption, truncation=True, max_length=self._model.max_tokens)
        pixels = normalize(self.checkpoint.image_processor, prepared[None]).to(self._device)
        with autocast(self._device, self._dtype):
            tokens = torch.tensor([encoded["input_ids"]], device=self._device)
            (weights,) = self._model.attention(self._model.encode(pixels), tokens).float().cpu().numpy()
        return by_word(prepared.permute(1, 2, 0).numpy(), caption, encoded, weights)

    @torch.inference_mode()
    def picture_features(self, pictures: Iterable[bytes], name: str) -> npt.NDArray[np.float32]:
        """Return the mean of each encoded picture's image tokens at length 1, `(pictures, width)`.

        Args:
            pictures: encoded pictures of the data set.
            name: label of the progress bar.
        """
        rows: list[npt.NDArray[np.float32]] = []
        batch: list[torch.Tensor] = []
        for data in progress_bar(pictures, desc=name, unit=" pictures"):
            batch.append(self.prepare(Image.open(io.BytesIO(data)).convert("RGB")))
            if len(batch) == _ENCODED_TOGETHER:
                rows.append(pooled(self._encode(torch.stack(batch))))
                batch = []
        if batch:
            padded = torch.stack([*batch, *[batch[-1]] * (_ENCODED_TOGETHER - len(batch))])
            rows.append(pooled(self._encode(padded))[: len(batch)])
        width = self.checkpoint.model.features_shape[1]
        return np.concatenate(rows) if rows else np.zeros((0, width), dtype=np.float32)

    @torch.inference_mode()
    def several(
        self, pictures: Sequence[Image.Image], count: int, seed: int = 0, diverse: bool = False
    ) -> list[list[str]]:
        """Return up to `count` different captions per picture, sampled, the likeliest first.

        Samples `2 * count` captions, drops duplicates and ranks the others by their mean log-probability per token.
        Sets torch's global seed to `seed`.

        Args:
            pictures: the pictures.
            count: number of captions.
            seed: random seed of the samples.
            diverse: sample `4 * count` captions, and choose those that share few words (see `most_different`).
        """
        torch.manual_seed(seed)
        sampled = self._generate(pictures, self._sampling((4 if diverse else 2) * count))
        distinct = [list(dict.fromkeys(captions)) for captions in sampled]
        scored = self._scored(resize_and_crop(self.checkpoint.image_processor, pictures), distinct)
        return [[caption.text for caption in best(captions, count, diverse)] for captions in scored]

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """Return a picture at the size of the model's input, `(3, height, width)` uint8."""
        return resize_and_crop(self.checkpoint.image_processor, [picture])[0]

    @torch.inference_mode()
    def scored(
        self,
        prepared: Sequence[torch.Tensor],
        seeds: Sequence[int],
        *,
        count: int,
        beams: int,
        sampling: bool,
        diverse: bool = False,
        on_features: Callable[[torch.Tensor], None] | None = None,
    ) -> list[list[Scored]]:
        """Return up to `count` different captions per picture with their scores. A batch doesn't change an answer.

        The likeliest caption by beam search comes first; the others are sampled and ranked by score. A
        captioner that compares captions returns the candidates that agree best instead. With `sampling` all are
        sampled, as in `several`. Sets torch's global seed.

        Args:
            prepared: pictures from `prepare`.
            seeds: random seed of each picture's samples.
            count: number of captions.
            beams: width of beam search.
            sampling: whether no caption comes from beam search.
            diverse: whether sampled captions share few words, see `several`.
            on_features: receives the encoder's features, averaged over each picture, `(pictures, hidden)` float32.
        """
        resized = torch.stack(list(prepared))
        features = self._encode(resized)
        if on_features:
            on_features(features.float().mean(dim=1).cpu())
        found: list[list[Scored]] = [[] for _ in seeds]
        if self._decoding is not None and not sampling:
            chosen = [texts[:count] for texts in self._chosen(resized, features, beams, None)]
            return self._scored(resized, chosen, features)
        if not sampling:
            found = self._generate_scored(resized, features, self._search(beams, None))
        if sampling or count > 1:
            for index, seed in enumerate(seeds):  # each by itself, so that its random draws are its own
                torch.manual_seed(seed)
                one = slice(index, index + 1)
                (samples,) = self._generate_scored(
                    resized[one], features[one], self._sampling((4 if diverse else 2) * count)
                )
                found[index] = best(samples, count, diverse, first=found[index])
        return found

    def _search(self, beams: int, max_tokens: int | None, found: int = 1) -> Decoding:
        return replace(self._sampling(0, max_tokens), beams=beams, found=found)

    def _sampling(self, samples: int, max_tokens: int | None = None) -> Decoding:
        way = self._generation
        return Decoding(
            length_penalty=way.length_penalty,
            samples=samples,
            temperature=way.temperature,
            top_p=way.top_p,
            top_k=way.top_k,
            no_repeat_ngram_size=way.no_repeat_ngram_size,
            min_tokens=way.min_tokens,
            max_tokens=max_tokens,
            prompt=self._prompt,
        )

    def _encode(self, resized: torch.Tensor) -> torch.Tensor:
        """Return the features of resized pictures, `(pictures, 3, height, width)` uint8."""
        pixels = normalize(self.checkpoint.image_processor, resized).to(self._device)
        with autocast(self._device, self._dtype):
            return self._model.encode(pixels)

    @torch.inference_mode()
    def candidates(self, prepared: Sequence[torch.Tensor], beams: int) -> list[Candidates]:
        """Return what the caption of each picture is chosen among, by `ranked`. Sets torch's global seed.

        Args:
            prepared: pictures from `prepare`.
            beams: width of beam search.
        """
        resized = torch.stack(list(prepared))
        return self._candidates(resized, self._encode(resized), beams, None)

    def _candidates(
        self, resized: torch.Tensor, features: torch.Tensor, beams: int, max_tokens: int | None
    ) -> list[Candidates]:
        way, neighbours = self._decoding, self.neighbours
        assert way is not None
        assert neighbours is not None

        def generate(which: slice, decoding: Decoding) -> list[list[Scored]]:
            if way.likelihood:
                return self._generate_scored(resized[which], features[which], decoding)
            return [[Scored(text, 0.0) for text in texts] for texts in self._texts(features[which], decoding)]

        found = generate(slice(None), self._search(beams, max_tokens, found=beams))
        sampling = replace(self._sampling(way.samples, max_tokens), temperature=way.temperature, top_p=1.0)
        for index, captions in enumerate(found if way.samples else ()):
            torch.manual_seed(way.seed)  # each by itself, so that its random draws are its own
            captions += generate(slice(index, index + 1), sampling)[0]
        near = neighbours.captions_near(pooled(features), way.neighbours)
        return [
            Candidates([one.text for one in captions], np.array([one.score for one in captions]), *written)
            for captions, written in zip(found, near, strict=True)
        ]

    def _chosen(
        self, resized: torch.Tensor, features: torch.Tensor, beams: int, max_tokens: int | None
    ) -> list[list[str]]:
        """Return the distinct candidates of each picture, the best first. Sets torch's global seed."""
        assert self._decoding is not None
        assert self.neighbours is not None
        way, utility = self._decoding, self.neighbours.utility
        found = self._candidates(resized, features, beams, max_tokens)
        return [ranked(utility, way.method, candidates, way.likelihood) for candidates in found]

    def _texts(self, features: torch.Tensor, decoding: Decoding) -> list[list[str]]:
        """Return the captions of each picture."""
        with autocast(self._device, self._dtype):
            tokens = self._model.generate_captions(None, features, decoding)
        return self._decode(tokens, len(features))

    def _generate_scored(self, resized: torch.Tensor, features: torch.Tensor, decoding: Decoding) -> list[list[Scored]]:
        """Return the captions of each picture with their scores, as they were generated."""
        with autocast(self._device, self._dtype):
            tokens, scores = self._model.generate_with_scores(features, decoding)
        texts = self._decode(tokens, len(features))
        if scores is None:
            return self._scored(resized, texts, features)
        numbers = iter(scores.tolist())
        return [[Scored(text, next(numbers)) for text in captions] for captions in texts]

    def _scored(
        self, resized: torch.Tensor, captions: list[list[str]], features: torch.Tensor | None = None
    ) -> list[list[Scored]]:
        """Return captions of resized pictures, `(pictures, 3, height, width)` uint8, with their scores.

        With `features` the pictures are not encoded again.
        """
        tokens = caption_tokens(self.checkpoint, captions, self._model.max_tokens)
        batch = collate(self.checkpoint, resized, tokens).to(self._device)
        seen = {} if features is None else {"features": features}
        with autocast(self._device, self._dtype):
            means = self._model.likelihood(
                batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of, **seen
            )
        scores = iter(means.tolist())
        return [[Scored(text, next(scores)) for text in texts] for texts in captions]

    def _generate(self, pictures: Sequence[Image.Image], decoding: Decoding) -> list[list[str]]:
        """Return the captions of each picture."""
        return self._texts(self._encode(resize_and_crop(self.checkpoint.image_processor, pictures)), decoding)

    def _decode(self, tokens: torch.Tensor, pictures: int) -> list[list[str]]:
        """Return the texts of generated tokens, by picture."""
        texts = [text.strip() for text in self.checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        each = len(texts) // pictures
        return [texts[i : i + each] for i in range(0, len(texts), each)]


def pooled(features: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return the mean of each picture's image tokens at length 1, `(pictures, width)`."""
    mean: npt.NDArray[np.float32] = to_length_1(features.float().mean(dim=1), dim=1).cpu().numpy()
    return mean
