"""The forward pass of GIT's layers. Each function takes a layer of transformers' GIT and uses its weights."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.models.git.ops import attend, attend_with_lse, dropout, linear, normed_feed_forward

KeysValues = tuple[torch.Tensor, torch.Tensor]


def encoder_layer(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the output of a layer of the image encoder (pre-norm), `(pictures, tokens, hidden)`."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    queries, keys, values = (_split_heads(project(normed), attention.head_dim) for project in projections)
    attended = attend(queries, keys, values, None, attention.dropout if attention.training else 0.0)
    hidden = hidden + attention.out_proj(_merge_heads(attended))
    _, out = normed_feed_forward(hidden, layer.layer_norm2, layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2)
    return hidden + out


def decoder_layer(layer: Any, hidden: torch.Tensor, image_tokens: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the output of a layer of the decoder for image tokens, followed by text tokens if there is a mask.

    Args:
        layer: of transformers' model.
        hidden: `(pictures, image_tokens + width, hidden)`.
        image_tokens: number of image tokens; they attend to each other only.
        mask: of the text tokens, see `Packing.mask`.
    """
    attention = layer.attention.self
    queries = _split_heads(linear(hidden, attention.query), attention.attention_head_size)
    keys, values = keys_values(attention, hidden)
    rate = _rate(attention.dropout)
    image = slice(image_tokens)
    attended = attend(queries[:, :, image], keys[:, :, image], values[:, :, image], None, rate)
    if mask is not None:
        attended = torch.cat([attended, attend(queries[:, :, image_tokens:], keys, values, mask, rate)], dim=2)
    return _after_attention(layer, hidden, _merge_heads(attended))


def last_decoder_layer(layer: Any, hidden: torch.Tensor, image_tokens: int, mask: torch.Tensor) -> torch.Tensor:
    """Return the output of the last layer for the text tokens only: it needs just the image's keys and values."""
    attention = layer.attention.self
    text = hidden[:, image_tokens:]
    queries = _split_heads(linear(text, attention.query), attention.attention_head_size)
    rate = _rate(attention.dropout)
    attended = attend(queries, *keys_values(attention, hidden), mask, rate)
    return _after_attention(layer, text, _merge_heads(attended))


def generation_layer(
    layer: Any, hidden: torch.Tensor, image: KeysValues, text: KeysValues, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the output of a layer of the decoder for new text tokens, `(rows, new, hidden)`.

    Image and text share one softmax, but the image's keys and values are never copied for each row: all rows of a
    picture (its beams or samples) are treated as queries of that picture.

    Args:
        layer: of transformers' model.
        hidden: `(rows, new, hidden)`; the rows of a picture are adjacent, and each picture has the same number.
        image: keys and values of the image tokens, `(pictures, heads, image_tokens, head_size)`.
        text: keys and values of all text tokens so far, `(rows, heads, past + new, head_size)`.
        mask: `(new, past + new)`, 0 or -inf; None for a single new token.
    """
    attention = layer.attention.self
    rows_per_picture = len(hidden) // len(image[0])
    queries = _split_heads(linear(hidden, attention.query), attention.attention_head_size)
    on_image, image_lse = attend_with_lse(_fold(queries, rows_per_picture), *image, None)
    on_text, text_lse = attend_with_lse(queries, *text, mask)
    # The text's share of the common softmax's denominator.
    share = torch.sigmoid(text_lse - _unfold(image_lse, rows_per_picture)).to(on_text.dtype)
    attended = torch.lerp(_unfold(on_image, rows_per_picture), on_text, share)
    return _after_attention(layer, hidden, _merge_heads(attended))


def keys_values(attention: Any, hidden: torch.Tensor) -> KeysValues:
    """Return the keys and values of tokens, `(rows, heads, tokens, head_size)` each."""
    size = attention.attention_head_size
    return _split_heads(linear(hidden, attention.key), size), _split_heads(linear(hidden, attention.value), size)


def _after_attention(layer: Any, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Return a decoder layer's output: projection and feed-forward, each with its residual and norm (post-norm)."""
    projection, outer = layer.attention.output, layer.output
    summed = dropout(linear(attended, projection.dense), _rate(projection.dropout)) + hidden
    activation = layer.intermediate.intermediate_act_fn
    normed, out = normed_feed_forward(summed, projection.LayerNorm, layer.intermediate.dense, activation, outer.dense)
    result: torch.Tensor = outer.LayerNorm(dropout(out, _rate(outer.dropout)) + normed)
    return result


def _rate(module: torch.nn.Dropout) -> float:
    """Return the rate of a dropout in the current mode."""
    return module.p if module.training else 0.0


def _split_heads(projected: torch.Tensor, size: int) -> torch.Tensor:
    """`(rows, tokens, heads * size)` -> `(rows, heads, tokens, size)`."""
    return projected.view(*projected.shape[:2], -1, size).transpose(1, 2)


def _merge_heads(attended: torch.Tensor) -> torch.Tensor:
    """`(rows, heads, tokens, size)` -> `(rows, tokens, heads * size)`."""
    return attended.transpose(1, 2).flatten(2)


def _fold(rows: torch.Tensor, rows_per_picture: int) -> torch.Tensor:
    """`(pictures * rows, heads, tokens, size)` -> `(pictures, heads, rows * tokens, size)`."""
    return rows.view(-1, rows_per_picture, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)


def _unfold(folded: torch.Tensor, rows_per_picture: int) -> torch.Tensor:
    """`(pictures, heads, rows * tokens, size)` -> `(pictures * rows, heads, tokens, size)`."""
    pictures, heads, _, size = folded.shape
    return folded.view(pictures, heads, rows_per_picture, -1, size).transpose(1, 2).flatten(0, 1)
