"""GIT with the image computed once per picture: transformers' model with less arithmetic.

GIT is a prefix language model: image tokens come first and never attend to text; each caption token attends to the
image and to the caption before it. So the keys and values of the image tokens in every layer (the *prefix*) are the
same for all captions of a picture in training, and for all beams and samples in generation. transformers'
`GitForCausalLM` recomputes them for each; this subclass computes them once. In training, a picture and all its captions
are one row of tokens.

Parameters, checkpoint format, losses and generated tokens equal those of transformers' class; tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipeline.models.base import CaptionModel, Decoding, is_target_of
from pipeline.models.git.layers import (
    KeysValues,
    decoder_layer,
    encoder_layer,
    generation_layer,
    keys_values,
    last_decoder_layer,
)
from pipeline.models.git.ops import by_hand, head_cross_entropy, linear
from pipeline.models.git.packing import packing_of

_DECODER = r"git\.encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)"
_IMAGE_ENCODER = r"git\.image_encoder\..+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
_LOGITS = 1024  # tokens whose logits are computed at a time


@dataclass(frozen=True)
class Prefix:
    """What captions attend to in their pictures.

    Attributes:
        layers: for each layer, the keys and values of the image tokens, `(pictures, heads, image_tokens, head_size)`.
    """

    layers: list[KeysValues]


class GitForCausalLM(transformers.GitForCausalLM, CaptionModel):  # type: ignore[misc]  # transformers is untyped here
    """transformers' class with a prefix computed once per picture, fused attention, and the head on targets only.

    It has the same name because `save_pretrained` writes the class name into a checkpoint.
    """

    if TYPE_CHECKING:  # attributes that transformers sets; at run time it would read such an annotation of `config`
        config: Any
        generation_config: Any
        git: Any
        output: Any
        generate: Any
        save_pretrained: Any
        activation_checkpointing_enable: Any
        disable_input_require_grads: Any
        resize_token_embeddings: Any

    @property
    def image_encoder(self) -> torch.nn.Module:
        """The vision transformer."""
        encoder: torch.nn.Module = self.git.image_encoder
        return encoder

    @property
    def image_encoder_settings(self) -> dict[str, Any]:
        """The `vision_config`."""
        settings: dict[str, Any] = self.config.vision_config.to_dict()
        return settings

    @property
    def features_shape(self) -> tuple[int, int]:
        """One token per patch and the class token, `(image tokens, vision width)`."""
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size

    @property
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""
        return int(self.config.vision_config.image_size)

    @property
    def max_tokens(self) -> int:
        """The number of text positions."""
        return int(self.config.max_position_embeddings)

    def set_caption_length(self, max_tokens: int) -> None:
        """Set the `max_length` of the generation config."""
        self.generation_config.max_length = max_tokens

    def lora_targets(self, with_image_encoder: bool) -> str:
        """Return the pattern of the attention projections, in the decoder only or everywhere."""
        return f"{_DECODER}|{_IMAGE_ENCODER}" if with_image_encoder else _DECODER

    def vocabulary_parameters(self) -> list[torch.nn.Parameter]:
        """Return the word embeddings, and the head's weights and biases."""
        return [self.git.embeddings.word_embeddings.weight, self.output.weight, self.output.bias]

    @torch.no_grad()
    def add_tokens(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Add rows to the embeddings and the head; see `CaptionModel.add_tokens`."""
        known = min(pieces)
        size = max(max(pieces) + 1, self.config.vocab_size)  # git-base's vocabulary may be larger than its tokenizer
        self.resize_token_embeddings(size, mean_resizing=False)
        for rows in self.vocabulary_parameters():
            for token, parts in pieces.items():
                rows[token] = (rows[list(parts)] if parts else rows[:known]).mean(dim=0)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass."""
        self.activation_checkpointing_enable()
        # transformers makes the embeddings' output require gradients, which reentrant checkpointing needs. With LoRA
        # that output is a leaf, and the embeddings add to it in place. `_run` is not reentrant and needs neither.
        self.disable_input_require_grads()

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write what stock `GitForCausalLM.from_pretrained` loads."""
        self.save_pretrained(folder, state_dict=weights)

    def generate_captions(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, decoding: Decoding
    ) -> torch.Tensor:
        """Search or sample with transformers' `generate`; see `caption`."""
        return self.caption(pixel_values, features=features, prompt=decoding.prompt, **decoding.generate_options())

    @torch.inference_mode()
    def generate_with_scores(self, features: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and scores; the prefix of generation serves for the scores too."""
        prefix = self.prefix(features)
        tokens = self._generate(prefix, len(features), decoding.prompt, **decoding.generate_options())
        is_target = is_target_of(tokens, self.generation_config.eos_token_id)
        hidden = self._decoded(tokens[:, :-1], prefix, DynamicCache())[is_target]
        # A part at a time: all logits of many beams would take gigabytes.
        parts = zip(hidden.split(_LOGITS), tokens[:, 1:][is_target].split(_LOGITS), strict=True)
        losses = [cross_entropy(linear(part, self.output).float(), ids, reduction="none") for part, ids in parts]
        log_probabilities = torch.zeros(is_target.shape, device=hidden.device)
        log_probabilities[is_target] = -torch.cat(losses)
        return tokens, log_probabilities.sum(dim=1) / is_target.sum(dim=1)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the output of the image encoder, `(pictures, image_tokens, width)`."""
        tower = self.git.image_encoder.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers:
            hidden = self._run(encoder_layer, layer, hidden)
        encoded: torch.Tensor = tower.post_layernorm(hidden)
        return encoded

    def prefix(self, features: torch.Tensor) -> Prefix:
        """Return the prefix of pictures from their features, `(pictures, image_tokens, width)`."""
        hidden = self.git.visual_projection(features)
        layers: list[KeysValues] = []
        for layer in self.git.encoder.layer[:-1]:
            layers.append(keys_values(layer.attention.self, hidden))
            hidden = decoder_layer(layer, hidden, hidden.shape[1], None)
        layers.append(keys_values(self.git.encoder.layer[-1].attention.self, hidden))
        # Contiguous, because every step of generation multiplies with them.
        return Prefix([(keys.contiguous(), values.contiguous()) for keys, values in layers])

    def _run(self, function: Callable[..., Any], layer: Any, *inputs: torch.Tensor) -> Any:
        """Return the output of a layer; with gradient checkpointing it is recomputed in the backward pass."""
        if self.training and layer.gradient_checkpointing:
            return checkpoint(function, layer, *inputs, use_reentrant=False)
        return function(layer, *inputs)

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
        """Return the summed cross-entropy of predicting each token from the ones before it, and the number of targets.

        Padding and image tokens are never targets. transformers' own loss is not used: its label shift was wrong in
        releases from 4.49 to mid-2026 (huggingface/transformers#47394). For the arguments see `CaptionModel`.
        """
        is_target = attention_mask[:, 1:].bool()
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        hidden = self._target_hidden(features, input_ids, is_target, picture_of)
        targets = (input_ids if labels is None else labels)[:, 1:][is_target]
        loss = head_cross_entropy(hidden, self.output, targets, label_smoothing)
        return loss, is_target.sum()

    def log_probabilities(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the log-probability of each caption (nats), `(captions,)`, with gradients."""
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        is_target = attention_mask[:, 1:].bool()
        logits = self.output(self._target_hidden(features, input_ids, is_target, picture_of))
        log_probabilities = -cross_entropy(logits.float(), input_ids[:, 1:][is_target], reduction="none")
        caption = is_target.nonzero()[:, 0]
        return torch.zeros(len(input_ids), device=logits.device).index_add(0, caption, log_probabilities)

    def _target_hidden(
        self, features: torch.Tensor, input_ids: torch.Tensor, is_target: torch.Tensor, picture_of: torch.Tensor
    ) -> torch.Tensor:
        """Return the decoder's output at the token before each target, `(targets, hidden)`, in the captions' order."""
        packing = packing_of(is_target, picture_of, len(features))
        image = self.git.visual_projection(features)
        text = self.git.embeddings(input_ids=packing.pack(input_ids[:, :-1]), position_ids=packing.positions)
        hidden, image_tokens = torch.cat([image, text], dim=1), image.shape[1]
        mask = packing.mask(image_tokens, text.dtype, is_dense=by_hand(text))
        for layer in self.git.encoder.layer[:-1]:
            hidden = self._run(decoder_layer, layer, hidden, image_tokens, mask)
        return packing.unpack(self._run(last_decoder_layer, self.git.encoder.layer[-1], hidden, image_tokens, mask))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 0,
        prefix: Prefix | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Run transformers' forward pass or, with a `prefix`, one step of generation on text tokens (see `caption`).

        The arguments are spelled out because `generate` inspects this signature to decide which to pass.
        """
        if prefix is not None:
            assert input_ids is not None
            assert past_key_values is not None
            return self._step(input_ids, prefix, past_key_values, logits_to_keep)
        result: CausalLMOutputWithPast = super().forward(
            input_ids, attention_mask, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **others
        )
        return result

    def _step(
        self,
        input_ids: torch.Tensor,
        prefix: Prefix,
        past_key_values: Cache,
        logits_to_keep: int,
    ) -> CausalLMOutputWithPast:
        """Return the logits after `input_ids`; see `_decoded`."""
        hidden = self._decoded(input_ids, prefix, past_key_values)
        logits = linear(hidden[:, -logits_to_keep:] if logits_to_keep else hidden, self.output)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _decoded(self, input_ids: torch.Tensor, prefix: Prefix, past_key_values: Cache) -> torch.Tensor:
        """Return the decoder's output at `input_ids` `(rows, new)`; `past_key_values` holds the text before them.

        The rows of a picture (its beams or samples) are adjacent, and each picture has the same number.
        """
        new = input_ids.shape[1]
        past = past_key_values.get_seq_length()
        positions = torch.arange(past, past + new, device=input_ids.device)
        # A new token attends to the text up to itself; a single one attends to everything.
        mask = None if new == 1 else self.output.weight.new_full((new, past + new), float("-inf")).triu(past + 1)
        hidden: torch.Tensor = self.git.embeddings(input_ids=input_ids, position_ids=positions[None])
        for index, (layer, image) in enumerate(zip(self.git.encoder.layer, prefix.layers, strict=True)):
            text = past_key_values.update(*keys_values(layer.attention.self, hidden), index)
            hidden = generation_layer(layer, hidden, image, text, mask)
        return hidden

    @torch.inference_mode()
    def caption(
        self,
        pixel_values: torch.Tensor | None,
        features: torch.Tensor | None = None,
        prompt: Sequence[int] = (),
        **options: Any,
    ) -> torch.Tensor:
        """Generate with transformers' `generate` (beam search, sampling, ...), with one prefix per picture.

        Args:
            pixel_values: `(pictures, 3, height, width)`; None if `features` are passed.
            features: the pictures' features, from `encode`.
            prompt: tokens that every caption starts with, after the begin mark.
            options: options of `generate`: `num_beams`, `do_sample`, `num_return_sequences`, `max_length`, ...

        Returns:
            Token ids with the begin mark, `(pictures * num_return_sequences, length)`.
        """
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        return self._generate(self.prefix(features), len(features), prompt, **options)

    def _generate(self, prefix: Prefix, pictures: int, prompt: Sequence[int], **options: Any) -> torch.Tensor:
        start = [self.generation_config.bos_token_id, *prompt]
        begin = torch.tensor([start] * pictures, device=self.output.weight.device)
        # `generate` repeats every tensor argument for each beam; a `Prefix` is no tensor, so it is not repeated.
        tokens: torch.Tensor = self.generate(input_ids=begin, prefix=prefix, **options)
        return tokens
