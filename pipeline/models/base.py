"""What a captioning model is to the rest of the project: `CaptionModel`, and `Checkpoint` with its preprocessing.

Training, evaluation, the registry and the captioner use these classes only. An architecture is a package beside this
module that implements them, and `pipeline/models/factory.py` picks it by the `model_type` of a checkpoint's
`config.json`. The whole contract stands in one module, which may grow beyond 350 lines with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Scratch
from pipeline.models.new_tokens import choose_new_tokens, known_pieces

_SMALL = 10_000_000  # parameters


@dataclass(frozen=True)
class Decoding:
    """How captions are generated.

    Attributes:
        beams: width of beam search; 1 is greedy search. Ignored when sampling.
        found: captions of a beam search to return per picture, the likeliest first; at most `beams`.
        length_penalty: beam search divides a caption's log-probability by its length to this power.
        samples: captions to sample per picture; 0 searches for the likeliest caption.
        temperature: below 1 the samples are likelier and less varied.
        top_p: probability mass of the tokens to sample from (Holtzman et al. 2020, "nucleus sampling").
        top_k: number of the likeliest tokens to sample from (Fan et al. 2018); 0 for all.
        no_repeat_ngram_size: no sequence of this many tokens occurs twice; 0 allows repetition.
        min_tokens: minimum length in tokens, without begin mark and prompt.
        max_tokens: maximum length in tokens, begin and end marks included; None uses the model's own.
        prompt: tokens that every caption starts with.
    """

    beams: int = 1
    found: int = 1
    length_penalty: float = 1.0
    samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    max_tokens: int | None = None
    prompt: tuple[int, ...] = ()

    def generate_options(self) -> dict[str, Any]:
        """Return the options of transformers' `generate`."""
        options: dict[str, Any] = {"do_sample": False, "num_beams": self.beams, "num_return_sequences": self.found}
        if self.beams > 1:
            options["length_penalty"] = self.length_penalty
        if self.samples:
            options = {"do_sample": True, "num_return_sequences": self.samples, "temperature": self.temperature}
            options |= {"top_p": self.top_p, "top_k": self.top_k}
        if self.no_repeat_ngram_size:
            options["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        if self.min_tokens:
            options["min_new_tokens"] = self.min_tokens
        if self.max_tokens is not None:
            options["max_length"] = self.max_tokens
        return options


def is_target_of(tokens: torch.Tensor, end: int | list[int]) -> torch.Tensor:
    """Return which tokens of generated captions count, without the begin mark, `(captions, length - 1)`.

    Args:
        tokens: `(captions, length)`, with the begin mark; padding follows the end mark.
        end: the end mark, or several of them.
    """
    ends = torch.tensor(end if isinstance(end, list) else [end], device=tokens.device)
    is_end = torch.isin(tokens[:, 1:], ends)
    return is_end.cumsum(dim=1) - is_end.long() == 0  # up to the first end mark


class CaptionModel(torch.nn.Module, ABC):
    """A model that turns pictures into features and features into captions.

    Shapes: pixels are `(pictures, 3, image_size, image_size)`, normalised. Features are `(pictures, *features_shape)`.
    Captions are token ids `(captions, length)`, from the begin mark to the end mark and then padding, with an
    attention mask of the same shape (1 on tokens) and `picture_of` `(captions,)`, the index of each caption's picture:
    a picture and its features are passed once, however many captions it has.
    """

    _image_encoder_is_frozen = False

    @property
    def notice(self) -> str:
        """The origin and licence of weights that came from elsewhere, for the model card; else empty."""
        return ""

    @property
    @abstractmethod
    def image_encoder(self) -> torch.nn.Module:
        """The part that computes features; its parameters are those that `freeze_image_encoder` freezes."""

    @property
    @abstractmethod
    def image_encoder_settings(self) -> dict[str, Any]:
        """The configuration that features depend on, besides the image encoder's weights."""

    @property
    @abstractmethod
    def features_shape(self) -> tuple[int, int]:
        """The shape of a picture's features: `(image tokens, width)`."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """The longest caption that the model can process, in tokens."""

    @property
    def suitable_learning_rate(self) -> float:
        """The peak learning rate that `finetune.learning_rate: auto` trains all weights with.

        The default follows the size: 5e-5 is usual for pretrained checkpoints like GIT-base (177 million parameters);
        models with less than 10 million learn far too little with it.
        """
        return 1e-3 if self.num_parameters() < _SMALL else 5e-5

    @abstractmethod
    def set_caption_length(self, max_tokens: int) -> None:
        """Set the default maximum length of generated captions, in tokens; a saved checkpoint keeps it."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features of pictures."""

    @abstractmethod
    def caption_loss(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross-entropy of captions (nats), and the number of tokens in the sum.

        Args:
            pixel_values: the pictures; None if `features` are passed.
            input_ids: the captions.
            attention_mask: 1 on tokens, 0 on padding.
            picture_of: the index of each caption's picture.
            features: the pictures' features, from `encode`.
            labels: `(captions, length)`, the tokens to predict if they differ from `input_ids`.
            label_smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
        """

    @abstractmethod
    def log_probabilities(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the log-probability of each caption (nats), `(captions,)`, with gradients.

        It is the sum over the tokens after the begin mark. For the arguments see `caption_loss`.
        """

    @torch.inference_mode()
    def likelihood(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean log-probability per token of each caption (nats), `(captions,)`.

        For the arguments see `caption_loss`.
        """
        sums = self.log_probabilities(pixel_values, input_ids, attention_mask, picture_of, features)
        return sums / attention_mask[:, 1:].sum(dim=1)

    @abstractmethod
    def generate_captions(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, decoding: Decoding
    ) -> torch.Tensor:
        """Return token ids, `(pictures * captions, length)`; the captions of a picture are adjacent.

        A picture gets `decoding.samples` captions, or `decoding.found` by search. Pass either pixels or features.
        """

    def generate_with_scores(
        self, features: torch.Tensor, decoding: Decoding
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens of `generate_captions`, and the mean log-probability per token of each caption (nats).

        The scores are None if the architecture has no cheaper way to compute them than `likelihood`.
        """
        return self.generate_captions(None, features, decoding), None

    @property
    def attends(self) -> bool:
        """Whether the model can say where in the picture it looked before each word, see `attention`."""
        return False

    def attention(self, features: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return how much each image token counted for each token of a caption but the first.

        Args:
            features: of one picture per caption.
            input_ids: captions without padding.

        Returns:
            `(captions, length - 1, image tokens)`, which sums to 1 over a square grid of image tokens, row by row.

        Raises:
            NotImplementedError: `attends` is false.
        """
        raise NotImplementedError("this architecture does not attend")

    @abstractmethod
    def lora_targets(self, with_image_encoder: bool) -> str:
        """Return a regular expression for the full names of the linear layers that LoRA adapts.

        Raises:
            ConfigError: the architecture has no such layers.
        """

    def vocabulary_parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters with one row per token: the embeddings, and the output weights and biases.

        Raises:
            ConfigError: the architecture can't add tokens.
        """
        raise ConfigError("params.yaml: finetune.new_tokens: this architecture can't add tokens; set it to 0")

    def add_tokens(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Give tokens that were added to the tokenizer a row of `vocabulary_parameters`.

        Args:
            pieces: for each added token, the tokens whose mean its row starts as; none: the mean of all.

        Raises:
            ConfigError: the architecture can't add tokens.
        """
        raise ConfigError("params.yaml: finetune.new_tokens: this architecture can't add tokens; set it to 0")

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass from now on, to save memory.

        Raises:
            ConfigError: the architecture does not support it.
        """

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write `config.json` and safetensors weights into a folder.

        Args:
            folder: the destination.
            weights: saved in place of the model's own.
        """

    def freeze_image_encoder(self) -> None:
        """Exclude the image encoder from training, and keep it in evaluation mode (no dropout) from now on."""
        self.image_encoder.requires_grad_(False)
        self._image_encoder_is_frozen = True

    @property
    def image_encoder_is_frozen(self) -> bool:
        """Whether `freeze_image_encoder` was called."""
        return self._image_encoder_is_frozen

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen image encoder stays in evaluation mode."""
        super().train(mode)
        if self._image_encoder_is_frozen:
            self.image_encoder.eval()
        return self

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


class ImageProcessor(Protocol):
    """Resizes, crops and normalises pictures; Hugging Face's image processors (PIL backend) implement it."""

    image_mean: Sequence[float]
    image_std: Sequence[float]
    rescale_factor: float

    def __call__(self, images: list[Image.Image], **options: Any) -> Any:
        """Return a mapping with `pixel_values`, `(pictures, 3, height, width)`."""

    def to_dict(self) -> dict[str, Any]:
        """Return all settings."""

    def save_pretrained(self, folder: Path) -> Any:
        """Write the settings into a folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with the image processor and the tokenizer that it was trained with."""

    model: CaptionModel
    image_processor: ImageProcessor
    tokenizer: PreTrainedTokenizerFast

    @property
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""
        return self.model.image_size

    def add_new_tokens(self, captions: Iterable[str], count: int) -> list[str]:
        """Add tokens for words of the captions to the tokenizer and the model, and return these words.

        The rows of a new token in embeddings and head start as the mean of its pieces' rows (of all rows, if no piece
        is known), as in Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models". The result is
        a plain checkpoint: the tokens are Hugging Face's added tokens.

        Args:
            captions: the training captions.
            count: at most this many tokens are added.

        Raises:
            ConfigError: the architecture can't add tokens.
        """
        added = choose_new_tokens(self.tokenizer.backend_tokenizer, captions, count)
        words = [token.content for token in added]
        pieces = [known_pieces(self.tokenizer.backend_tokenizer, word) for word in words]
        if words:
            self.tokenizer.add_tokens(added)
            self.model.add_tokens(dict(zip(self.tokenizer.convert_tokens_to_ids(words), pieces, strict=True)))
        return words

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a plain Hugging Face checkpoint.

        Args:
            folder: the destination.
            weights: saved in place of the model's own.
        """
        self.model.write(folder, weights)
        self.image_processor.save_pretrained(folder)
        # transformers 5 notes how the tokenizer was loaded, so HF_HUB_OFFLINE would change the checkpoint's hash.
        for key in ("is_local", "local_files_only"):
            self.tokenizer.init_kwargs.pop(key, None)
        self.tokenizer.save_pretrained(folder)


class Architecture(Protocol):
    """How checkpoints of one `model_type` are loaded and created."""

    def load(self, folder: Path) -> Checkpoint:
        """Load a checkpoint whose `config.json` and safetensors weights are known to exist.

        Other exceptions of the library may pass: the factory turns them into a `ConfigError`.

        Raises:
            ConfigError: the weights are incomplete.
        """

    def scratch(self, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
        """Create a model with random weights (torch's seed decides) and a tokenizer trained on `captions`."""

    def self_check(self, device: torch.device) -> None:
        """Check before training that the installed libraries compute what this code expects, on this device.

        Random states stay as they are.

        Raises:
            ConfigError: they do not; names the library and its version.
        """
