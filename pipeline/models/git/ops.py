"""Operations of a transformer layer that save as little as possible for the backward pass on a CPU.

Torch's modules save the inputs of every operation: the values before, within and after an activation, a floating-point
mask for dropout, and three copies of the probabilities of attention with dropout. Here cheap values are recomputed and
masks are bytes, so a training step of GIT-base needs half the memory. Random numbers are drawn four at a time: drawing
them one by one took 5 % of a step on a CPU. Elsewhere torch's own operations compute the same, see `by_hand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import LayerNorm, Linear, Module
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu
from torch.nn.functional import dropout as torch_dropout
from transformers.activations import GELUActivation, QuickGELUActivation

_aten = torch.ops.aten
_CHUNK = 512  # targets whose logits are in memory at a time
# For each activation: f, its backward pass, and s, so that activation(x) = f(s x) / s. CLIP's quick GELU,
# x sigmoid(1.702 x), is a SiLU between two scalings, and a matrix product can scale its result at no cost.
_ACTIVATIONS: dict[type, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], float]] = {
    GELUActivation: (gelu, _aten.gelu_backward, 1.0),
    QuickGELUActivation: (silu, _aten.silu_backward, 1.702),
}


_forced: bool | None = None  # see `computed`


def by_hand(x: torch.Tensor) -> bool:
    """Return whether the operations below compute `x` in the way written here for CPUs; otherwise torch's own do.

    On a GPU torch's kernels are fused and can use flash attention. In float16 gradients must be scaled while they are
    computed, but that of `head_cross_entropy` is computed before the loss is scaled.
    """
    if _compute_dtype(x) == torch.float16:
        return False
    return x.device.type == "cpu" if _forced is None else _forced


@contextmanager
def computed(by_hand: bool) -> Iterator[None]:
    """Choose for all devices in this block, and in all threads: for tests and benchmarks."""
    global _forced
    before, _forced = _forced, by_hand
    try:
        yield
    finally:
        _forced = before


def linear(x: torch.Tensor, layer: Module) -> torch.Tensor:
    """Return the output of a linear layer for `(..., features)`.

    Generation in float32 on a CPU uses oneDNN instead of torch's default, MKL: with the few rows of a generation step
    it is 1.2 to 2.9 times as fast, and with many rows no slower.
    """
    if (
        type(layer) is Linear  # a subclass, such as LoRA's, does more
        and by_hand(x)
        and torch.is_inference_mode_enabled()
        and torch.backends.mkldnn.is_available()
        and x.device.type == "cpu"
        and _compute_dtype(x) == x.dtype == layer.weight.dtype == torch.float32
    ):
        pointwise: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
        return pointwise
    result: torch.Tensor = layer(x)
    return result


def normed_feed_forward(
    x: torch.Tensor, norm: LayerNorm, inner: Linear, activation: Module, outer: Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `n = norm(x)` and the feed-forward `outer(activation(inner(n)))`.

    The backward pass needs only `x` and the output of `inner`; for activations other than GELU and quick GELU, more.

    Args:
        x: `(rows, tokens, hidden)`.
        norm: over `hidden`.
        inner: from `hidden` to `intermediate`.
        activation: a module of `transformers.activations`.
        outer: from `intermediate` to `hidden`.
    """
    kind = _ACTIVATIONS.get(type(activation))
    inference = torch.is_inference_mode_enabled()  # has no backward pass
    if kind is None or not by_hand(x) or (inference and kind[2] == 1):
        plain = norm(x)
        return plain, linear(activation(linear(plain, inner)), outer)
    dtype = _compute_dtype(x)
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
        grad_normed, grad_out = gradients
        assert grad_out is not None
        x, norm_weight, norm_bias, mean, deviation, scaled, weight_1, weight_2 = ctx.saved_tensors
        function, backward, scale = ctx.activation
        size = x.shape[-1:]
        # Frozen weights (with LoRA, all of these) cost no matrix products.
        learns = dict(zip(_FEED_FORWARD, ctx.needs_input_grad, strict=False))
        grad_rows = grad_out.flatten(0, -2)
        grad_bias_2 = grad_rows.sum(0) if learns["bias_2"] else None
        grad_weight_2 = torch.mm(grad_rows.t(), function(scaled)).div_(scale) if learns["weight_2"] else None
        grad_inner = backward(torch.mm(grad_rows, weight_2), scaled)
        grad_bias_1 = grad_inner.sum(0) if learns["bias_1"] else None
        grad_weight_1 = None
        if learns["weight_1"]:
            normed = torch.native_layer_norm(x, size, norm_weight, norm_bias, ctx.eps)[0]
            grad_weight_1 = torch.mm(grad_inner.t(), normed.flatten(0, -2).to(grad_inner.dtype))
        grad_norm_output = torch.mm(grad_inner, weight_1).view_as(x).to(x.dtype)
        if grad_normed is not None:
            grad_norm_output += grad_normed
        output_mask = [learns["x"], learns["norm_weight"], learns["norm_bias"]]
        norm_gradients = _aten.native_layer_norm_backward(
            grad_norm_output, x, size, mean, deviation, norm_weight, norm_bias, output_mask
        )
        return *norm_gradients, None, grad_weight_1, grad_bias_1, grad_weight_2, grad_bias_2, None


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products: autocast's if it is enabled."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Zero elements with probability `rate` and scale the others, like `torch.nn.functional.dropout`."""
    if rate == 0 or not by_hand(x):
        return torch_dropout(x, rate)
    dropped: torch.Tensor = _Dropout.apply(x, _keep_mask(x.shape, rate, x.device), 1 / (1 - rate))  # type: ignore[no-untyped-call]
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.mul(x, mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return torch.mul(gradients[0], mask).mul_(ctx.scale), None, None


def _keep_mask(shape: torch.Size, rate: float, device: torch.device) -> torch.Tensor:
    """Return bytes from torch's generator: 0 with probability `rate` (to 1/65,536), else 1."""
    count = math.prod(shape)
    fours = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    random = fours.view(torch.int16)
    return (random[:count] >= round(rate * 2**16) - 2**15).view(torch.uint8).view(shape)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, rate: float
) -> torch.Tensor:
    """Return attention with dropout of its probabilities, `(rows, heads, queries, size)`.

    Args:
        queries: `(rows, heads, queries, size)`.
        keys: `(rows, heads, keys, size)`.
        values: `(rows, heads, keys, size)`.
        mask: `(rows, 1, queries, keys)`, added to the scores; or None; or torch's `CausalBias` unless by hand.
        rate: of dropout, from 0 to 1.
    """
    if rate == 0 or not by_hand(queries):
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=rate)
    keep = _keep_mask(torch.Size([*queries.shape[:3], keys.shape[2]]), rate, queries.device)
    attended: torch.Tensor = _DropoutAttention.apply(queries, keys, values, mask, keep, 1 / (1 - rate))  # type: ignore[no-untyped-call]
    return attended


def attend_with_lse(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention, `(rows, heads, queries, size)`, and the log-sum-exp of its scores, `(..., queries, 1)`.

    With the log-sum-exp, attention over two sets of keys can be combined into attention over both (Milakov and
    Gimelshein 2018). The arguments are those of `attend`.
    """
    if queries.device.type == "cpu" and by_hand(queries):
        attended, lse = _aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=mask)
        return attended, lse[..., None]
    return attend_with_lse_unfused(queries, keys, values, mask)


def attend_with_lse_unfused(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `attend_with_lse` where torch has no single operation for it."""
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(dim=-1).to(values.dtype), values), scores.logsumexp(dim=-1, keepdim=True)


class _DropoutAttention(torch.autograd.Function):
    """Attention with dropout on a CPU, which torch's fused one lacks. The backward pass recomputes probabilities."""

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, keys: torch.Tensor, *others: Any) -> torch.Tensor:
        values, mask, keep, scale = others
        ctx.save_for_backward(queries, keys, values, mask, keep)
        ctx.scale = scale
        return torch.matmul(_probabilities(queries, keys, mask).mul_(keep), values).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, mask, keep = ctx.saved_tensors
        grad_attended = gradients[0] * ctx.scale
        probabilities = _probabilities(queries, keys, mask)
        grad_values = torch.matmul((probabilities * keep).transpose(-1, -2), grad_attended)
        grad_probabilities = torch.matmul(grad_attended, values.transpose(-1, -2)).mul_(keep)
        grad_scores = _aten._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
        grad_scores.mul_(queries.shape[-1] ** -0.5)
        grad_queries = torch.matmul(grad_scores, keys)
        grad_keys = torch.matmul(grad_scores.transpose(-1, -2), queries)
        return grad_queries, grad_keys, grad_values, None, None, None


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
    if mask is not None:
        scores += mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)


def head_cross_entropy(
    hidden: torch.Tensor, head: Linear, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the summed cross-entropy of the logits `head(hidden)` (nats), in float32.

    Loss and gradients are computed together in chunks of targets, so that all logits are never in memory at once
    (compare Hsu et al. 2024, "Liger Kernel"). `backward` can be called once.

    Args:
        hidden: `(targets, hidden)`.
        head: from `hidden` to the vocabulary.
        targets: `(targets,)`, token ids.
        label_smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    if not by_hand(hidden):
        return cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=label_smoothing)
    dtype = _compute_dtype(hidden)
    hidden, weight, bias = hidden.to(dtype), head.weight.to(dtype), head.bias.to(dtype)
    loss: torch.Tensor = _CrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *others: Any) -> torch.Tensor:
        targets, smoothing, with_gradients = others
        learns = ctx.needs_input_grad[1]  # weight and bias are frozen together
        loss = torch.zeros((), device=hidden.device)
        grad_hidden: list[torch.Tensor] = []
        grad_weight, grad_bias = (torch.zeros_like(x, dtype=torch.float32) if learns else None for x in (weight, bias))
        for rows, chunk in zip(hidden.split(_CHUNK), targets[:, None].split(_CHUNK), strict=True):
            logs = torch.addmm(bias, rows, weight.t()).float().log_softmax(dim=-1)
            loss -= (1 - smoothing) * logs.gather(1, chunk).sum() + smoothing * logs.sum() / len(bias)
            if with_gradients:
                # The gradient of the logits: predicted probabilities minus target probabilities.
                grad_logits = logs.exp_().scatter_add_(1, chunk, torch.full_like(logs[:, :1], smoothing - 1))
                if smoothing:
                    grad_logits -= smoothing / len(bias)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                grad_logits = grad_logits.to(weight.dtype)
                grad_hidden.append(torch.mm(grad_logits, weight))
                if grad_weight is None:
                    continue
                if grad_logits.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), rows)
                else:  # sums over chunks stay in float32
                    grad_weight += torch.mm(grad_logits.t(), rows)
        ctx.gradients = (torch.cat(grad_hidden), grad_weight, grad_bias) if grad_hidden else None
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("backward can be called once only: it scales the gradients in place")
        scaled = [None if x is None else x.mul_(gradients[0]).to(ctx.dtype) for x in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None
