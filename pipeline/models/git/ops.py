"""The steps of a transformer layer, keeping for the backward pass no more than the mathematics needs.

Torch's modules keep what each of their operations asks for: of a feed-forward the values before, within and after
its activation, of dropout a mask in floating point, of attention with dropout the probabilities three times. Here the
cheap ones are computed again and masks are bytes, so that a training step of GIT-base needs half the memory; and
random numbers are drawn four at a time, for on a CPU drawing them one by one took a twentieth of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import LayerNorm, Linear, Module
from torch.nn.functional import dropout as torch_dropout
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from transformers.activations import GELUActivation, QuickGELUActivation

_aten = torch.ops.aten
_CHUNK = 512  # targets whose logits are in memory at a time
# Of an activation a function f, its backward pass, and s: what it makes of x is f(s x) / s. CLIP's quick GELU,
# x sigmoid(1.702 x), is a SiLU between two scalings, and a matrix product scales its result for nothing.
_ACTIVATIONS: dict[type, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], float]] = {
    GELUActivation: (gelu, _aten.gelu_backward, 1.0),
    QuickGELUActivation: (silu, _aten.silu_backward, 1.702),
}


def linear(x: torch.Tensor, layer: Module) -> torch.Tensor:
    """What a linear layer makes of `(..., features)`.

    Generation on a CPU asks oneDNN for it where torch asks MKL: with the few rows of its steps that is 1.2 to 2.9 times
    as fast, and with many no slower.
    """
    if (
        type(layer) is Linear  # a library's subclass (LoRA's) does more
        and torch.is_inference_mode_enabled()
        and torch.backends.mkldnn.is_available()
        and x.device.type == "cpu"
        and _computing(x) == x.dtype == layer.weight.dtype == torch.float32
    ):
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
        return made
    result: torch.Tensor = layer(x)
    return result


def normed_feed_forward(
    x: torch.Tensor, norm: LayerNorm, inner: Linear, activation: Module, outer: Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer norm and the feed-forward after it: `n = norm(x)` and `outer(activation(inner(n)))`.

    For the backward pass are kept `x` and what `inner` says; more for an activation other than GELU and quick GELU.

    Args:
        x: `(rows, tokens, hidden)`.
        norm: over `hidden`.
        inner: from `hidden` to the wider inside.
        activation: one of the library's.
        outer: the way back.
    """
    kind = _ACTIVATIONS.get(type(activation))
    if kind is None or (torch.is_inference_mode_enabled() and kind[2] == 1):  # then there is no backward pass
        plain = norm(x)
        return plain, linear(activation(linear(plain, inner)), outer)
    dtype = _computing(x)
    weights = [w.to(dtype) for w in (inner.weight, inner.bias, outer.weight, outer.bias)]
    normed, out = _NormedFeedForward.apply(x, norm.weight, norm.bias, norm.eps, *weights, kind)  # type: ignore[no-untyped-call]
    return normed, out


_FEED_FORWARD = ("x", "norm_weight", "norm_bias", "eps", "weight_1", "bias_1", "weight_2", "bias_2")


class _NormedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        norm_weight, norm_bias, eps, weight_1, bias_1, weight_2, bias_2, activation = others
        function, _, scale = activation
        normed, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        rows = normed.flatten(0, -2).to(weight_1.dtype)
        scaled = torch.addmm(bias_1, rows, weight_1.t(), alpha=scale, beta=scale)
        out = torch.addmm(bias_2, function(scaled), weight_2.t(), alpha=1 / scale)
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, deviation, scaled, weight_1, weight_2)
        ctx.eps, ctx.activation = eps, activation
        ctx.set_materialize_grads(False)
        return normed, out.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        of_normed, of_out = gradients
        assert of_out is not None
        x, norm_weight, norm_bias, mean, deviation, scaled, weight_1, weight_2 = ctx.saved_tensors
        function, backward, scale = ctx.activation
        size = x.shape[-1:]
        # Frozen weights (under LoRA, all of these) cost no matrix products.
        learns = dict(zip(_FEED_FORWARD, ctx.needs_input_grad, strict=False))
        of_rows = of_out.flatten(0, -2)
        bias_2 = of_rows.sum(0) if learns["bias_2"] else None
        weights_2 = torch.mm(of_rows.t(), function(scaled)).div_(scale) if learns["weight_2"] else None
        of_inner = backward(torch.mm(of_rows, weight_2), scaled)
        bias_1 = of_inner.sum(0) if learns["bias_1"] else None
        weights_1 = None
        if learns["weight_1"]:
            normed = torch.native_layer_norm(x, size, norm_weight, norm_bias, ctx.eps)[0]
            weights_1 = torch.mm(of_inner.t(), normed.flatten(0, -2).to(of_inner.dtype))
        through = torch.mm(of_inner, weight_1).view_as(x).to(x.dtype)
        if of_normed is not None:
            through += of_normed
        wanted = [learns["x"], learns["norm_weight"], learns["norm_bias"]]
        of_x, of_weight, of_bias = _aten.native_layer_norm_backward(
            through, x, size, mean, deviation, norm_weight, norm_bias, wanted
        )
        return of_x, of_weight, of_bias, None, weights_1, bias_1, weights_2, bias_2, None


def _computing(x: torch.Tensor) -> torch.dtype:
    """The format of matrix products: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def dropout(x: torch.Tensor, part: float) -> torch.Tensor:
    """Zero a `part` of the elements at random and scale the others, as `torch.nn.functional.dropout`."""
    if part == 0 or x.device.type != "cpu":
        return torch_dropout(x, part)
    kept: torch.Tensor = _Masked.apply(x, _mask(x.shape, part), 1 / (1 - part))  # type: ignore[no-untyped-call]
    return kept


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.mul(x, mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return torch.mul(gradients[0], mask).mul_(ctx.scale), None, None


def _mask(shape: torch.Size, part: float) -> torch.Tensor:
    """Bytes, 0 with probability `part` (to 1/65,536) and else 1, from torch's own generator."""
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (drawn[:count] >= round(part * 2**16) - 2**15).view(torch.uint8).view(shape)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, part: float
) -> torch.Tensor:
    """Attention, `(rows, heads, queries, size)`, with dropout of a `part` of its probabilities.

    Args:
        queries: `(rows, heads, queries, size)`.
        keys: `(rows, heads, keys, size)`.
        values: as the keys.
        mask: `(rows, 1, queries, keys)`, added to the scores; or none.
        part: from 0 to 1.
    """
    if part == 0 or queries.device.type != "cpu":
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=part)
    kept = _mask(torch.Size([*queries.shape[:3], keys.shape[2]]), part)
    mixed: torch.Tensor = _DroppedAttention.apply(queries, keys, values, mask, kept, 1 / (1 - part))  # type: ignore[no-untyped-call]
    return mixed


def attend_and_sum(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, `(rows, heads, queries, size)`, and the logarithm of its softmax's denominators, `(..., queries, 1)`.

    With these, attention over two sets of keys follows from that over each (Milakov and Gimelshein 2018). The arguments
    are those of `attend`.
    """
    if queries.device.type == "cpu":
        mixed, sums = _aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=mask)
        return mixed, sums[..., None]
    return attend_and_sum_plainly(queries, keys, values, mask)


def attend_and_sum_plainly(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend_and_sum`, where torch has no one operation that gives both."""
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(dim=-1).to(values.dtype), values), scores.logsumexp(dim=-1, keepdim=True)


class _DroppedAttention(torch.autograd.Function):
    """Where torch's fused attention of a CPU has no dropout. Probabilities are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, keys: torch.Tensor, *others: Any) -> torch.Tensor:
        values, mask, kept, scale = others
        ctx.save_for_backward(queries, keys, values, mask, kept)
        ctx.scale = scale
        return torch.matmul(_probabilities(queries, keys, mask).mul_(kept), values).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, mask, kept = ctx.saved_tensors
        of_mixed = gradients[0] * ctx.scale
        probabilities = _probabilities(queries, keys, mask)
        of_values = torch.matmul((probabilities * kept).transpose(-1, -2), of_mixed)
        of_probabilities = torch.matmul(of_mixed, values.transpose(-1, -2)).mul_(kept)
        of_scores = _aten._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
        of_scores.mul_(queries.shape[-1] ** -0.5)
        of_queries, of_keys = torch.matmul(of_scores, keys), torch.matmul(of_scores.transpose(-1, -2), queries)
        return of_queries, of_keys, of_values, None, None, None


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
    if mask is not None:
        scores += mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)


def cross_entropy_of(
    hidden: torch.Tensor, head: Linear, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The summed cross-entropy of the logits `head(hidden)`, natural logarithm, in float32.

    Loss and gradients are computed together, some targets at a time, so that the logits of all are never there at once
    (compare Hsu et al. 2024, "Liger Kernel").

    Args:
        hidden: `(targets, hidden)`.
        head: from `hidden` to the vocabulary.
        targets: `(targets,)`, indices of the vocabulary.
        label_smoothing: the part of the target that is spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    dtype = _computing(hidden)
    hidden, weight, bias = hidden.to(dtype), head.weight.to(dtype), head.bias.to(dtype)
    loss: torch.Tensor = _CrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *others: Any) -> torch.Tensor:
        targets, smoothing, with_gradients = others
        learns = ctx.needs_input_grad[1]  # weight and bias are frozen together
        loss = torch.zeros((), device=hidden.device)
        of_hidden: list[torch.Tensor] = []
        of_weight, of_bias = (torch.zeros_like(x, dtype=torch.float32) if learns else None for x in (weight, bias))
        for rows, wanted in zip(hidden.split(_CHUNK), targets[:, None].split(_CHUNK), strict=True):
            logs = torch.addmm(bias, rows, weight.t()).float().log_softmax(dim=-1)
            loss -= (1 - smoothing) * logs.gather(1, wanted).sum() + smoothing * logs.sum() / len(bias)
            if with_gradients:
                # The gradient of the logits: what the model says, less what it should have said.
                off = logs.exp_().scatter_add_(1, wanted, torch.full_like(logs[:, :1], smoothing - 1))
                if smoothing:
                    off -= smoothing / len(bias)
                if of_bias is not None:
                    of_bias += off.sum(0)
                off = off.to(weight.dtype)
                of_hidden.append(torch.mm(off, weight))
                if of_weight is None:
                    continue
                if off.dtype == torch.float32:
                    of_weight.addmm_(off.t(), rows)
                else:  # sums over chunks stay in float32
                    of_weight += torch.mm(off.t(), rows)
        ctx.gradients = (torch.cat(of_hidden), of_weight, of_bias) if of_hidden else None
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward can be called once only: the gradients are scaled where they are")
        of_all = [None if x is None else x.mul_(gradients[0]).to(ctx.dtype) for x in ctx.gradients]
        ctx.gradients = None
        return *of_all, None, None, None
