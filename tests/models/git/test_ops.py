"""Outputs and gradients equal those of torch's modules, and less memory is saved for the backward pass."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.activations import ACT2FN

from pipeline.models.git.ops import (
    attend,
    attend_with_lse,
    attend_with_lse_unfused,
    dropout,
    head_cross_entropy,
    linear,
    normed_feed_forward,
)

ROWS, TOKENS, HIDDEN, INNER = 2, 5, 8, 16


class FeedForward(torch.nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(HIDDEN)
        self.inner, self.outer = torch.nn.Linear(HIDDEN, INNER), torch.nn.Linear(INNER, HIDDEN)
        self.activation = ACT2FN[activation]
        torch.nn.init.normal_(self.norm.weight)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        return normed + self.outer(self.activation(self.inner(normed))) ** 2

    def lean(self, x: torch.Tensor) -> torch.Tensor:
        normed, out = normed_feed_forward(x, self.norm, self.inner, self.activation, self.outer)
        return normed + out**2


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
def test_a_feed_forward_equals_the_reference(activation: str) -> None:
    torch.manual_seed(0)
    module = FeedForward(activation).double()
    x = torch.randn(ROWS, TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)
    plain, lean = module.plain(x), module.lean(x)
    assert torch.allclose(lean, plain, atol=1e-12)
    wanted = [x, *module.parameters()]
    weights = torch.randn_like(plain)
    theirs = torch.autograd.grad((plain * weights).sum(), wanted)
    ours = torch.autograd.grad((lean * weights).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


class Doubled(torch.nn.Linear):
    """A subclass with another forward pass, like LoRA's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [torch.nn.Linear, Doubled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_linear_layer_equals_the_reference_in_generation(
    kind: type[torch.nn.Linear], dtype: torch.dtype, autocast: bool
) -> None:
    torch.manual_seed(0)
    layer, x = kind(HIDDEN, INNER).to(dtype), torch.randn(ROWS, TOKENS, HIDDEN).to(dtype)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, found = layer(x), linear(x, layer)
    assert found.dtype == plain.dtype
    torch.testing.assert_close(found, plain)
    assert linear(x, layer).requires_grad


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
def test_a_feed_forward_in_inference_equals_the_reference(activation: str) -> None:
    torch.manual_seed(0)
    module, x = FeedForward(activation), torch.randn(ROWS, TOKENS, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(module.lean(x), module.plain(x))


def test_gradients_are_right_if_the_norm_output_is_unused() -> None:
    torch.manual_seed(0)
    module = FeedForward("gelu").double()
    x = torch.randn(ROWS, TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)
    _, out = normed_feed_forward(x, module.norm, module.inner, module.activation, module.outer)
    plain = module.outer(module.activation(module.inner(module.norm(x))))
    (ours,), (theirs,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(plain.sum(), x)
    assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("frozen", ["norm", "inner", "outer"])
def test_frozen_weights_do_not_change_other_gradients(frozen: str) -> None:
    torch.manual_seed(0)
    module = FeedForward("gelu").double()
    x = torch.randn(ROWS, TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)
    getattr(module, frozen).requires_grad_(False)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    theirs = torch.autograd.grad(module.plain(x).sum(), wanted)
    ours = torch.autograd.grad(module.lean(x).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_bfloat16_gradients_are_close_and_stored_in_float32() -> None:
    torch.manual_seed(0)
    module = FeedForward("quick_gelu")
    x = torch.randn(ROWS, TOKENS, HIDDEN)
    found = []
    for on in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            made = module.lean(x)
        made.sum().backward()
        found.append([p.grad for p in module.parameters()])
    for full, half in zip(*found, strict=True):
        assert half is not None
        assert half.dtype == torch.float32
        assert torch.allclose(half, full, rtol=0.05, atol=0.05 * full.abs().max().item())
        assert not torch.equal(half, full)


def saved_bytes(work: Callable[[], object]) -> int:
    """Return the bytes saved for the backward pass of `work`, without parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    del result
    return sum(storage.nbytes() for storage in storages.values())


def test_less_memory_is_saved_for_the_backward_pass() -> None:
    module = FeedForward("quick_gelu")
    x = torch.randn(50, TOKENS, HIDDEN, requires_grad=True)
    lean = saved_bytes(lambda: normed_feed_forward(x, module.norm, module.inner, module.activation, module.outer))
    plain = saved_bytes(lambda: module.outer(module.activation(module.inner(module.norm(x)))))
    rows = 50 * TOKENS
    assert lean == 4 * rows * (HIDDEN + INNER + 2)  # input, output of the inner layer, mean and deviation
    assert lean < 0.5 * plain
    assert saved_bytes(lambda: dropout(x, 0.1)) == rows * HIDDEN  # one byte per element


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    for part in (0.1, 0.5):
        made = dropout(x, part)
        zeroed = (made == 0).double().mean().item()
        assert zeroed == pytest.approx(part, abs=4 * (part * (1 - part) / x.numel()) ** 0.5 + 2**-16)
        assert torch.equal(made[made != 0].unique(), torch.tensor([1 / (1 - part)]))
        (gradient,) = torch.autograd.grad(made.sum(), x)
        assert torch.equal(gradient, made)  # x is all ones, so both are the mask times the scale
    # Random numbers are drawn four at a time; the four are uncorrelated.
    four = dropout(x[:, :1000], 0.5).detach().reshape(-1, 4).sign() - 0.5
    assert (four.T @ four / len(four)).fill_diagonal_(0).abs().max() < 5 * 0.25 / len(four) ** 0.5


def test_dropout_depends_on_the_torch_seed() -> None:
    x = torch.ones(999)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(dropout(x, 0.3))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert dropout(x, 0.0) is x or torch.equal(dropout(x, 0.0), x)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_dropout_equals_the_reference(masked: bool) -> None:
    shape = (ROWS, 2, TOKENS, 4)
    queries, keys, values = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(ROWS, 1, TOKENS, TOKENS, dtype=torch.float64)
    mask[..., -1] = float("-inf")
    added = mask if masked else None
    torch.manual_seed(3)
    made = attend(queries, keys, values, added, 0.4)
    torch.manual_seed(3)
    drops = dropout(torch.ones(ROWS, 2, TOKENS, TOKENS, dtype=torch.float64), 0.4)
    scores = queries @ keys.transpose(-1, -2) / 2 + (added if masked else 0)
    expected = (scores.softmax(-1) * drops) @ values
    assert torch.allclose(made, expected, atol=1e-6)
    weights = torch.randn_like(made)
    for one, other in zip(
        torch.autograd.grad((made * weights).sum(), (queries, keys, values)),
        torch.autograd.grad((expected * weights).sum(), (queries, keys, values)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-6)
    without = attend(queries, keys, values, added, 0.0)
    assert torch.allclose(without, scaled_dot_product_attention(queries, keys, values, added), atol=1e-12)


@pytest.mark.parametrize("function", [attend_with_lse, attend_with_lse_unfused])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_over_two_sets_of_keys_can_be_combined(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]], masked: bool
) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(ROWS, 2, count, 4) for count in (3, 12, 12))
    mask = torch.zeros(3, 12)
    if masked:
        mask[:, 7:] = torch.full((3, 5), float("-inf")).triu(1)
    parts = [function(queries, keys[:, :, part], values[:, :, part], mask[:, part] if masked else None)
             for part in (slice(7), slice(7, 12))]  # fmt: skip
    (first, first_sums), (second, second_sums) = parts
    assert torch.allclose(first_sums, (queries @ keys[:, :, :7].mT / 2).logsumexp(-1, keepdim=True), atol=1e-6)
    made = torch.lerp(first, second, torch.sigmoid(second_sums - first_sums))
    assert torch.allclose(made, scaled_dot_product_attention(queries, keys, values, mask), atol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [3, 512])
def test_head_cross_entropy_equals_torch(label_smoothing: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.git.ops._CHUNK", chunk)
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, 30)
    hidden = torch.randn(10, HIDDEN, requires_grad=True)
    targets = torch.randint(30, (10,))
    ours = head_cross_entropy(hidden, head, targets, label_smoothing)
    theirs = cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=label_smoothing)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    wanted = [hidden, head.weight, head.bias]
    for one, other in zip(torch.autograd.grad(ours / 7, wanted), torch.autograd.grad(theirs / 7, wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(RuntimeError, match="once only"):
        ours.backward()
    head.requires_grad_(False)
    (alone,) = torch.autograd.grad(head_cross_entropy(hidden, head, targets, label_smoothing), hidden)
    (expected,) = torch.autograd.grad(
        cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=label_smoothing), hidden
    )
    assert torch.allclose(alone, expected, atol=1e-6)
    with torch.inference_mode():
        assert head_cross_entropy(hidden, head, targets, label_smoothing).item() == ours.item()


FAULTS = """
import resource, sys, torch
from pipeline.runtime.torch_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    for _ in range(5):
        torch.ones(2**24)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_kept_memory_is_reused_without_page_faults() -> None:
    keeping, plain = (
        int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("keep", "plain")
    )
    assert plain >= 5 * 2**24 * 4 // resource.getpagesize()
    assert keeping < 0.01 * plain
