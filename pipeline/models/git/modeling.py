"""GIT's forward pass, computed once a picture: the same model as transformers', with less arithmetic.

GIT is a prefix language model: the tokens of the picture come first and never look at the text; each token of
a caption looks at the picture and at the caption before it. So what the picture contributes, the keys and
values of its tokens in every layer (its *prefix*), is the same for all its captions in training and for all
beams and samples in generation. The library's `GitForCausalLM` computes it anew for each; the one here, once:
in training a picture and all its captions are one row of tokens.

Parameters, checkpoint format, losses and tokens are those of the library's class, and tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipeline.models.base import CaptionModel, Decoding
from pipeline.models.git.ops import attend, attend_and_sum, cross_entropy_of, dropout, linear, normed_feed_forward

KeysValues = tuple[torch.Tensor, torch.Tensor]

_DECODER = r"git\.encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)"
_IMAGE_ENCODER = r"git\.image_encoder\..+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"


@dataclass(frozen=True)
class Prefix:
    """What pictures contribute to their captions.

    Attributes:
        layers: for each layer the keys and the values, each `(pictures, heads, image_tokens, head_size)`.
    """

    layers: list[KeysValues]

    @property
    def pictures(self) -> int:
        """How many pictures."""
        return self.layers[0][0].shape[0]


class GitForCausalLM(transformers.GitForCausalLM, CaptionModel):  # type: ignore[misc]  # transformers is untyped here
    """The library's class with a prefix computed once per picture, fused attention, and the head on targets only.

    It has the library's name because `save_pretrained` writes the class name into a checkpoint.
    """

    if TYPE_CHECKING:  # attributes that transformers sets; at run time it would read such an annotation of `config`
        config: Any
        generation_config: Any
        git: Any
        output: Any
        generate: Any
        save_pretrained: Any
        gradient_checkpointing_enable: Any

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
        """The projections of attention, in the decoder or everywhere."""
        return f"{_DECODER}|{_IMAGE_ENCODER}" if with_image_encoder else _DECODER

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass."""
        self.gradient_checkpointing_enable()

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write what stock `GitForCausalLM.from_pretrained` loads."""
        self.save_pretrained(folder, state_dict=weights)

    def generate_captions(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, decoding: Decoding
    ) -> torch.Tensor:
        """Search or sample with transformers' `generate`; see `caption`."""
        options: dict[str, Any] = {"do_sample": False, "num_beams": decoding.beams}
        if decoding.samples:
            options = {"do_sample": True, "top_p": decoding.top_p, "num_return_sequences": decoding.samples}
        if decoding.max_tokens is not None:
            options["max_length"] = decoding.max_tokens
        return self.caption(pixel_values, features=features, **options)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the image encoder makes of `(pictures, 3, height, width)`: `(pictures, image_tokens, width)`."""
        tower = self.git.image_encoder.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers:
            hidden = self._run(_encoder_layer, layer, hidden)
        encoded: torch.Tensor = tower.post_layernorm(hidden)
        return encoded

    def prefix(self, features: torch.Tensor) -> Prefix:
        """The prefix of each picture of which the image encoder made `(pictures, image_tokens, width)`."""
        hidden = self.git.visual_projection(features)
        layers: list[KeysValues] = []
        for layer in self.git.encoder.layer[:-1]:
            layers.append(_keys_values(layer.attention.self, hidden))
            hidden = _layer(layer, hidden, hidden.shape[1], None)
        layers.append(_keys_values(self.git.encoder.layer[-1].attention.self, hidden))
        # Contiguous, because each step of generation multiplies with them.
        return Prefix([(keys.contiguous(), values.contiguous()) for keys, values in layers])

    def _run(self, function: Callable[..., Any], layer: Any, *inputs: torch.Tensor) -> Any:
        """What a layer does; under gradient checkpointing it is computed again in the backward pass."""
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
        """Cross-entropy of predicting each caption's tokens from those before it: its sum, and how many it sums.

        Padding and picture positions are never predicted. The library's own loss is not used: its label shift was
        wrong in releases from 4.49 to mid-2026 (huggingface/transformers#47394).

        Args:
            pixel_values: `(pictures, 3, height, width)`.
            input_ids: `(captions, length)`, from the beginning mark to the end mark, then padding.
            attention_mask: `(captions, length)`, 1 on tokens and 0 on padding.
            picture_of: `(captions,)`, the index of each caption's picture.
            features: in place of `pixel_values`, what the image encoder made of these: see `encode`.
            labels: `(captions, length)`, the tokens to predict, where these are others than those read.
            label_smoothing: the part of the target that is spread evenly over the vocabulary (Szegedy et al. 2016).
        """
        is_target = attention_mask[:, 1:].bool()
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        hidden = self._target_hidden(features, input_ids, is_target, picture_of)
        targets = (input_ids if labels is None else labels)[:, 1:][is_target]
        loss = cross_entropy_of(hidden, self.output, targets, label_smoothing)
        return loss, is_target.sum()

    @torch.inference_mode()
    def likelihood(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
    ) -> torch.Tensor:
        """The mean natural logarithm of the probability of each caption's tokens, `(captions,)`.

        The arguments are those of `caption_loss`.
        """
        is_target = attention_mask[:, 1:].bool()
        logits = self.output(self._target_hidden(self.encode(pixel_values), input_ids, is_target, picture_of))
        found = -cross_entropy(logits.float(), input_ids[:, 1:][is_target], reduction="none")
        caption = is_target.nonzero()[:, 0]
        sums = torch.zeros(len(input_ids), device=found.device).index_add(0, caption, found)
        return sums / is_target.sum(dim=1)

    def _target_hidden(
        self, features: torch.Tensor, input_ids: torch.Tensor, is_target: torch.Tensor, picture_of: torch.Tensor
    ) -> torch.Tensor:
        """What the decoder makes of the token before every target, `(targets, hidden)`, caption by caption."""
        packed = _pack(is_target, picture_of, len(features))
        image = self.git.visual_projection(features)
        text = self.git.embeddings(input_ids=packed.rows(input_ids[:, :-1]), position_ids=packed.positions)
        hidden, image_tokens = torch.cat([image, text], dim=1), image.shape[1]
        mask = packed.mask(image_tokens, text.dtype)
        for layer in self.git.encoder.layer[:-1]:
            hidden = self._run(_layer, layer, hidden, image_tokens, mask)
        return packed.captions(self._run(_last_layer, self.git.encoder.layer[-1], hidden, image_tokens, mask))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 0,
        prefix: Prefix | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """As the library's; with a `prefix`, one step of generation on text alone (see `caption`).

        The arguments are spelled out because `generate` reads from here which it may pass.
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
        """Logits of the tokens after `input_ids` `(rows, new)`; `past_key_values` holds the text before them.

        The rows of a picture (its beams or samples) stand together, as many for each.
        """
        rows, new = input_ids.shape
        each = rows // prefix.pictures
        past = past_key_values.get_seq_length()
        positions = torch.arange(past, past + new, device=input_ids.device)
        # Token i of the new ones sees the text up to itself; a single one sees all there is.
        mask = None if new == 1 else self.output.weight.new_full((new, past + new), float("-inf")).triu(past + 1)
        hidden = self.git.embeddings(input_ids=input_ids, position_ids=positions[None])
        for index, (layer, (keys, values)) in enumerate(zip(self.git.encoder.layer, prefix.layers, strict=True)):
            attention = layer.attention.self
            queries = _heads(linear(hidden, attention.query), attention.attention_head_size)
            text_keys, text_values = past_key_values.update(*_keys_values(attention, hidden), index)
            # One softmax over picture and text, but the picture's keys and values are never copied for its rows:
            # the rows of a picture are taken as so many queries of it.
            of_picture, picture_sums = attend_and_sum(_fold(queries, each), keys, values, None)
            of_text, text_sums = attend_and_sum(queries, text_keys, text_values, mask)
            # What each has of the softmax's denominator, whose logarithms these are.
            share = torch.sigmoid(text_sums - _unfold(picture_sums, each)).to(of_text.dtype)
            mixed = torch.lerp(_unfold(of_picture, each), of_text, share)
            hidden = _rest_of_layer(layer, hidden, _together(mixed))
        logits = linear(hidden[:, -logits_to_keep:] if logits_to_keep else hidden, self.output)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    @torch.inference_mode()
    def caption(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None = None, **how: Any
    ) -> torch.Tensor:
        """Generate with transformers' own `generate` (beam search, sampling, ...), the prefix computed once a picture.

        Args:
            pixel_values: `(pictures, 3, height, width)`.
            features: in place of `pixel_values`, what the image encoder made of these: see `encode`.
            how: what `generate` takes: `num_beams`, `do_sample`, `num_return_sequences`, `max_length`, ...

        Returns:
            Tokens, `(pictures * num_return_sequences, length)`, beginning mark included.
        """
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        begin = torch.full((len(features), 1), self.generation_config.bos_token_id, device=features.device)
        # `generate` repeats every tensor it is given for each beam; the prefix is no tensor, so it stays as it is.
        tokens: torch.Tensor = self.generate(input_ids=begin, prefix=self.prefix(features), **how)
        return tokens


def _encoder_layer(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What a layer of the image encoder makes of `(pictures, tokens, hidden)`; its norms come before its steps."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    queries, keys, values = (_heads(project(normed), attention.head_dim) for project in projections)
    mixed = attend(queries, keys, values, None, attention.dropout if attention.training else 0.0)
    hidden = hidden + attention.out_proj(_together(mixed))
    _, out = normed_feed_forward(hidden, layer.layer_norm2, layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)
    return hidden + out


def _layer(layer: Any, hidden: torch.Tensor, image_tokens: int, mask: torch.Tensor | None) -> torch.Tensor:
    """What a layer of the decoder makes of rows of picture tokens, and text tokens behind them where there is a mask.

    Args:
        layer: the library's.
        hidden: `(pictures, image_tokens + width, hidden)`.
        image_tokens: those of the picture look at each other only.
        mask: for the text tokens, `(pictures, 1, width, image_tokens + width)`, see `_Packed.mask`.
    """
    attention = layer.attention.self
    queries = _heads(linear(hidden, attention.query), attention.attention_head_size)
    keys, values = _keys_values(attention, hidden)
    part = _part(attention.dropout)
    of_image = slice(image_tokens)
    mixed = attend(queries[:, :, of_image], keys[:, :, of_image], values[:, :, of_image], None, part)
    if mask is not None:
        mixed = torch.cat([mixed, attend(queries[:, :, image_tokens:], keys, values, mask, part)], dim=2)
    return _rest_of_layer(layer, hidden, _together(mixed))


def _last_layer(layer: Any, hidden: torch.Tensor, image_tokens: int, mask: torch.Tensor) -> torch.Tensor:
    """As `_layer`, of the text tokens only: of the picture only keys and values are used in the last layer."""
    attention = layer.attention.self
    text = hidden[:, image_tokens:]
    queries = _heads(linear(text, attention.query), attention.attention_head_size)
    part = _part(attention.dropout)
    mixed = attend(queries, *_keys_values(attention, hidden), mask, part)
    return _rest_of_layer(layer, text, _together(mixed))


def _part(module: torch.nn.Dropout) -> float:
    """The part that a dropout zeroes now."""
    return module.p if module.training else 0.0


def _keys_values(attention: Any, hidden: torch.Tensor) -> KeysValues:
    size = attention.attention_head_size
    return _heads(linear(hidden, attention.key), size), _heads(linear(hidden, attention.value), size)


def _heads(projected: torch.Tensor, size: int) -> torch.Tensor:
    """`(rows, tokens, heads * size)` -> `(rows, heads, tokens, size)`."""
    return projected.view(*projected.shape[:2], -1, size).transpose(1, 2)


def _together(mixed: torch.Tensor) -> torch.Tensor:
    """The way back from `_heads`."""
    return mixed.transpose(1, 2).flatten(2)


def _rest_of_layer(layer: Any, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """What follows attention in a layer: projection, feed-forward, both with their residuals and norms."""
    after, outer = layer.attention.output, layer.output
    summed = dropout(linear(mixed, after.dense), _part(after.dropout)) + hidden
    activation = layer.intermediate.intermediate_act_fn
    normed, out = normed_feed_forward(summed, after.LayerNorm, layer.intermediate.dense, activation, outer.dense)
    result: torch.Tensor = outer.LayerNorm(dropout(out, _part(outer.dropout)) + normed)
    return result


def _fold(rows: torch.Tensor, each: int) -> torch.Tensor:
    """`(pictures * each, heads, tokens, size)` -> `(pictures, heads, each * tokens, size)`."""
    return rows.view(-1, each, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)


def _unfold(folded: torch.Tensor, each: int) -> torch.Tensor:
    """The way back from `_fold`."""
    pictures, heads, _, size = folded.shape
    return folded.view(pictures, heads, each, -1, size).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class _Packed:
    """Where the tokens of captions stand when all captions of a picture are laid into one row, without padding.

    Attributes:
        chosen: `(captions, length)`, which tokens are laid out.
        place: for each of these its place in the flattened rows.
        positions: `(pictures, width)`, the position of each token within its caption.
        caption: `(pictures, width)`, the caption of each token; -1 where a row has no more.
    """

    chosen: torch.Tensor
    place: torch.Tensor
    positions: torch.Tensor
    caption: torch.Tensor

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(captions, length)` -> `(pictures, width)`."""
        flat = torch.zeros_like(self.positions).flatten()
        return flat.index_copy(0, self.place, tokens[self.chosen]).view_as(self.positions)

    def captions(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(pictures, width, hidden)` -> `(tokens, hidden)`, caption by caption."""
        return hidden.flatten(0, 1)[self.place]

    def mask(self, image_tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """`(pictures, 1, width, image_tokens + width)`, 0 where a token looks and -inf where it must not.

        A token looks at its picture, and at its own caption up to itself.
        """
        same = self.caption[:, :, None] == self.caption[:, None, :]
        earlier = self.positions[:, :, None] >= self.positions[:, None, :]
        text = torch.zeros_like(same, dtype=dtype).masked_fill(~(same & earlier), float("-inf"))
        return torch.nn.functional.pad(text, (image_tokens, 0))[:, None]


def _pack(chosen: torch.Tensor, picture_of: torch.Tensor, pictures: int) -> _Packed:
    """Lay out the `chosen` `(captions, length)` tokens, those at the beginning of each caption, a row a picture."""
    lengths = chosen.sum(dim=1)
    order = torch.argsort(picture_of, stable=True)
    before = torch.empty_like(lengths)
    before[order] = lengths[order].cumsum(0) - lengths[order]
    of_row = torch.zeros(pictures, dtype=lengths.dtype, device=lengths.device).index_add(0, picture_of, lengths)
    row_start = of_row.cumsum(0) - of_row
    width = int(of_row.max())
    first = picture_of * width + before - row_start[picture_of]
    within = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    place = (first[:, None] + within)[chosen]
    size = (pictures, width)
    positions = torch.zeros(size, dtype=torch.long, device=chosen.device).flatten()
    caption = torch.full(size, -1, device=chosen.device).flatten()
    which = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)
    return _Packed(
        chosen=chosen,
        place=place,
        positions=positions.index_copy(0, place, within[chosen]).view(size),
        caption=caption.index_copy(0, place, which[chosen]).view(size),
    )
