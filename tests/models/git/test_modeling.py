"""Loss, gradients and generated tokens equal those of transformers' GIT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention.bias import CausalBias
from torch.nn.functional import scaled_dot_product_attention
from transformers import GitConfig

from pipeline.models.base import Decoding
from pipeline.models.git import ops
from pipeline.models.git.modeling import GitForCausalLM

PICTURES, BEGIN, END = 3, 1, 2
# Captions are not sorted by picture; lengths include both marks.
PICTURE_OF = torch.tensor([0, 2, 1, 0, 2, 2])
LENGTHS = [7, 4, 5, 2, 8, 3]


def config(dropout: float = 0.0) -> GitConfig:
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    return GitConfig(
        vision_config=vision,
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=0,
    )


@pytest.fixture(autouse=True, params=["by hand", "by torch"])
def operations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test runs with the operations for CPUs, and with torch's own, which GPUs use."""
    with ops.computed(by_hand=request.param == "by hand"):
        yield


@pytest.fixture
def stock() -> transformers.GitForCausalLM:
    torch.manual_seed(0)
    return transformers.GitForCausalLM(config()).eval()


@pytest.fixture
def ours(stock: transformers.GitForCausalLM) -> GitForCausalLM:
    model = GitForCausalLM(config()).eval()
    model.load_state_dict(stock.state_dict())
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    ids = torch.randint(5, 60, mask.shape) * mask
    return torch.randn(PICTURES, 3, 32, 32), ids, mask, PICTURE_OF


def stock_loss(model: transformers.GitForCausalLM) -> torch.Tensor:
    pixels, ids, mask, picture_of = batch()
    labels = ids.masked_fill(mask == 0, -100)
    return model(input_ids=ids, attention_mask=mask, pixel_values=pixels[picture_of], labels=labels).loss


def assert_same_gradients(ours: GitForCausalLM, stock: transformers.GitForCausalLM) -> None:
    for (name, mine), (_, other) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert mine.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(mine.grad, other.grad, atol=1e-4), name


def test_loss_equals_cross_entropy_computed_token_by_token(
    stock: transformers.GitForCausalLM, ours: GitForCausalLM
) -> None:
    pixels, ids, _, picture_of = batch()
    expected = 0.0
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            picture = pixels[picture_of[row]][None]
            for t in range(1, length):
                # The input ends before token t, so later tokens can't leak.
                logits = stock(input_ids=ids[row : row + 1, :t], pixel_values=picture).logits[0, -1]
                expected -= logits.log_softmax(-1)[ids[row, t]].item()
        loss, tokens = ours.caption_loss(*batch())
    assert tokens.item() == sum(LENGTHS) - len(LENGTHS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_loss_and_gradients_equal_stock(stock: transformers.GitForCausalLM, ours: GitForCausalLM) -> None:
    loss, tokens = ours.caption_loss(*batch())
    theirs = stock_loss(stock)
    assert (loss / tokens).item() == pytest.approx(theirs.item(), abs=1e-5)
    (loss / tokens).backward()
    theirs.backward()
    assert_same_gradients(ours, stock)


def test_packed_captions_have_the_loss_of_separate_captions(ours: GitForCausalLM) -> None:
    pixels, ids, mask, picture_of = batch()
    with torch.no_grad():
        together, _ = ours.caption_loss(pixels, ids, mask, picture_of)
        alone = sum(
            ours.caption_loss(
                pixels[picture_of[k] : picture_of[k] + 1], ids[k : k + 1], mask[k : k + 1], torch.tensor([0])
            )[0].item()
            for k in range(len(ids))
        )
    assert together.item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("rows", "is_causal"), [([1, 2, 3], True), ([0, 2, 3], False), ([0, 1, 2, 3], False)])
def test_one_caption_of_each_picture_needs_no_mask_in_memory(
    stock: transformers.GitForCausalLM,
    ours: GitForCausalLM,
    rows: list[int],
    is_causal: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Captions of pictures 2, 1 and 0; of 0, 1 and 0; of all three and another of 0. A dense mask rules out flash."""
    masks: list[Any] = []

    def attend(*inputs: Any, attn_mask: Any = None, dropout_p: float = 0.0) -> torch.Tensor:
        masks.append(attn_mask)
        return scaled_dot_product_attention(*inputs, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(ops, "scaled_dot_product_attention", attend)
    pixels, ids, mask, picture_of = batch()
    ids, mask, picture_of = ids[rows], mask[rows], picture_of[rows]
    loss, tokens = ours.caption_loss(pixels, ids, mask, picture_of)
    by_torch = "by torch" in request.node.callspec.id
    assert any(isinstance(mask, CausalBias) for mask in masks) == (is_causal and by_torch)
    assert any(type(mask) is torch.Tensor for mask in masks) != (is_causal and by_torch)
    labels = ids.masked_fill(mask == 0, -100)
    theirs = stock(input_ids=ids, attention_mask=mask, pixel_values=pixels[picture_of], labels=labels).loss
    assert (loss / tokens).item() == pytest.approx(theirs.item(), abs=1e-5)
    (loss / tokens).backward()
    theirs.backward()
    assert_same_gradients(ours, stock)


def test_padding_does_not_change_the_loss(ours: GitForCausalLM) -> None:
    pixels, ids, mask, picture_of = batch()
    wider = torch.nn.functional.pad(ids, (0, 9), value=17)
    with torch.no_grad():
        loss, tokens = ours.caption_loss(pixels, ids, mask, picture_of)
        padded, same = ours.caption_loss(pixels, wider, torch.nn.functional.pad(mask, (0, 9)), picture_of)
    assert tokens == same
    assert padded.item() == pytest.approx(loss.item(), rel=1e-6)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(ours: GitForCausalLM) -> None:
    ours.train()  # dropout is 0 in this configuration
    gradients = []
    for on in (False, True):
        if on:
            ours.gradient_checkpointing_enable()
        ours.zero_grad()
        loss, _ = ours.caption_loss(*batch())
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in ours.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) == 1 + len(list(ours.parameters()))
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, atol=1e-5)


def test_label_smoothing_spreads_a_share_of_the_target_evenly(ours: GitForCausalLM) -> None:
    with torch.no_grad():
        sharp, tokens = ours.caption_loss(*batch())
        smooth, _ = ours.caption_loss(*batch(), label_smoothing=0.1)
        uniform = 0.0  # cross-entropy against the uniform distribution
        for word in range(60):
            labels = torch.full_like(batch()[1], word)
            uniform += ours.caption_loss(*batch(), labels=labels)[0].item() / 60
    assert smooth.item() == pytest.approx(0.9 * sharp.item() + 0.1 * uniform, rel=1e-4)
    assert tokens.item() == sum(LENGTHS) - len(LENGTHS)


def test_labels_can_differ_from_input_ids(ours: GitForCausalLM) -> None:
    pixels, ids, mask, picture_of = batch()
    last = [length - 1 for length in LENGTHS]  # end marks: targets, but never inputs
    changed = ids.clone()
    changed[range(len(LENGTHS)), last] = 7
    with torch.no_grad():
        read, _ = ours.caption_loss(pixels, changed, mask, picture_of)
        predicted, _ = ours.caption_loss(pixels, ids, mask, picture_of, labels=changed)
        neither, _ = ours.caption_loss(pixels, ids, mask, picture_of)
    assert predicted.item() == pytest.approx(read.item(), rel=1e-6)
    assert predicted.item() != pytest.approx(neither.item(), rel=1e-3)


def test_likelihoods_sum_to_the_loss(ours: GitForCausalLM) -> None:
    likelihoods = ours.likelihood(*batch())
    lengths = torch.tensor(LENGTHS) - 1
    with torch.no_grad():
        loss, _ = ours.caption_loss(*batch())
    assert likelihoods.shape == (len(LENGTHS),)
    assert -(likelihoods * lengths).sum().item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_loss_depends_on_the_picture(ours: GitForCausalLM) -> None:
    pixels, ids, mask, picture_of = batch()
    with torch.no_grad():
        loss, _ = ours.caption_loss(pixels, ids, mask, picture_of)
        other, _ = ours.caption_loss(pixels.flip(0), ids, mask, picture_of)
    assert abs(loss.item() - other.item()) > 1e-2


def test_dropout_is_applied_only_in_training() -> None:
    torch.manual_seed(0)
    model = GitForCausalLM(config(dropout=0.5))
    inputs = batch()
    with torch.no_grad():
        assert model.caption_loss(*inputs)[0] != model.caption_loss(*inputs)[0]
        model.eval()
        assert model.caption_loss(*inputs)[0] == model.caption_loss(*inputs)[0]


DECODING: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "num_beams": 4},
    {"do_sample": False, "num_beams": 4, "length_penalty": 2.0},
    {"do_sample": False, "num_beams": 4, "num_return_sequences": 3},
    {"do_sample": True, "top_p": 0.9, "num_return_sequences": 5},
]


@pytest.mark.parametrize("options", DECODING)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_generated_tokens_equal_stock(
    stock: transformers.GitForCausalLM, ours: GitForCausalLM, options: dict[str, Any], seed: int
) -> None:
    torch.manual_seed(100 + seed)
    # Without this bias a random model never ends a caption, so beams of different lengths would not occur.
    for model in (stock, ours):
        model.output.bias.data[END] = 9.0
    pixels = torch.randn(4, 3, 32, 32)
    torch.manual_seed(seed)
    theirs = stock.generate(pixel_values=pixels, max_length=20, **options)
    torch.manual_seed(seed)
    assert torch.equal(ours.caption(pixels, max_length=20, **options), theirs)
    assert (theirs == END).any()


@pytest.mark.parametrize(
    ("decoding", "options"),
    [
        (Decoding(beams=4, length_penalty=0.0), {"num_beams": 4, "length_penalty": 0.0}),
        (Decoding(beams=4, found=4, no_repeat_ngram_size=2), {"num_beams": 4, "num_return_sequences": 4}),
        (Decoding(min_tokens=6, no_repeat_ngram_size=3), {"min_new_tokens": 6}),
        (Decoding(beams=3, min_tokens=5, prompt=(7, 9, 11)), {"num_beams": 3, "min_new_tokens": 5}),
        (Decoding(prompt=(7,)), {}),
        (Decoding(samples=6, temperature=0.7, top_k=0), {"temperature": 0.7, "top_k": 0}),
        (Decoding(samples=6, top_k=5, top_p=0.8, prompt=(8, 9)), {"top_k": 5, "top_p": 0.8}),
    ],
)
def test_every_way_to_generate_equals_stock(
    stock: transformers.GitForCausalLM, ours: GitForCausalLM, decoding: Decoding, options: dict[str, Any]
) -> None:
    for model in (stock, ours):
        model.output.bias.data[END] = 9.0
    torch.manual_seed(5)
    pixels = torch.randn(4, 3, 32, 32)
    begin = torch.tensor([[BEGIN, *decoding.prompt]] * 4)
    if decoding.samples:
        options = {**options, "do_sample": True, "num_return_sequences": decoding.samples}
    if decoding.no_repeat_ngram_size:
        options = {**options, "no_repeat_ngram_size": decoding.no_repeat_ngram_size}
    torch.manual_seed(6)
    theirs = stock.generate(input_ids=begin, pixel_values=pixels, max_length=20, **options)
    torch.manual_seed(6)
    mine = ours.generate_captions(pixels, None, replace(decoding, max_tokens=20))
    assert torch.equal(mine, theirs)
    assert (mine[:, : begin.shape[1]] == begin[0]).all()


def test_captions_do_not_depend_on_the_batch(ours: GitForCausalLM) -> None:
    pixels = batch()[0]
    together = ours.caption(pixels, max_length=12, num_beams=3)
    for k, row in enumerate(together):
        (alone,) = ours.caption(pixels[k : k + 1], max_length=12, num_beams=3)
        assert torch.equal(row[: len(alone)], alone)


def test_the_prefix_is_computed_once_per_picture(ours: GitForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    first = ours.git.image_encoder.vision_model.embeddings
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    ours.caption(batch()[0], max_length=8, num_beams=4)
    ours.caption(batch()[0], max_length=8, do_sample=True, num_return_sequences=5)
    ours.caption_loss(*batch())
    assert seen == [PICTURES] * 3


def test_checkpoints_are_interchangeable_with_stock(
    stock: transformers.GitForCausalLM, ours: GitForCausalLM, tmp_path: Path
) -> None:
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is transformers.GitForCausalLM
    with torch.no_grad():
        assert torch.equal(stock_loss(back), stock_loss(stock))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_loss_equals_the_eager_one() -> None:
    torch.manual_seed(0)
    # With 64 bits, so that the order in which sums are added does not hide or feign a difference.
    model = GitForCausalLM(config()).double()
    pixels, *captions = batch()
    gradients = []
    for loss_of in (model.caption_loss, torch.compile(model.caption_loss, backend="aot_eager")):
        model.zero_grad()
        loss, _ = loss_of(pixels.double(), *captions)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) == 1 + len(list(model.parameters()))
    for eager, compiled in zip(*gradients, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-9, atol=1e-9)


def test_the_stock_forward_pass_still_works(stock: transformers.GitForCausalLM, ours: GitForCausalLM) -> None:
    with torch.no_grad():
        assert stock_loss(ours).item() == pytest.approx(stock_loss(stock).item(), abs=1e-5)


@pytest.fixture(scope="module")
def full_width() -> tuple[transformers.GitForCausalLM, GitForCausalLM]:
    """GIT-base's sizes with two layers per tower and random weights."""
    torch.manual_seed(0)
    whole = GitConfig(num_hidden_layers=2, vision_config={"num_hidden_layers": 2}, initializer_range=0.1)
    stock = transformers.GitForCausalLM(whole).eval()
    ours = GitForCausalLM(whole).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def test_loss_and_gradients_equal_stock_at_full_width(
    full_width: tuple[transformers.GitForCausalLM, GitForCausalLM],
) -> None:
    stock, ours = full_width
    torch.manual_seed(1)
    ids, pixels, picture_of = torch.randint(1000, 30_000, (3, 9)), torch.randn(2, 3, 224, 224), torch.tensor([1, 0, 1])
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    loss, tokens = ours.caption_loss(pixels, ids, mask, picture_of)
    labels = ids.masked_fill(mask == 0, -100)
    theirs = stock(input_ids=ids, attention_mask=mask, pixel_values=pixels[picture_of], labels=labels).loss
    assert (loss / tokens).item() == pytest.approx(theirs.item(), rel=1e-5)
    (loss / tokens).backward()
    theirs.backward()
    assert_same_gradients(ours, stock)


@pytest.mark.parametrize("options", DECODING[:3])
def test_generated_tokens_equal_stock_at_full_width(
    full_width: tuple[transformers.GitForCausalLM, GitForCausalLM], options: dict[str, Any]
) -> None:
    torch.manual_seed(2)
    pixels = torch.randn(2, 3, 224, 224)
    stock, ours = full_width
    assert torch.equal(
        ours.caption(pixels, max_length=10, **options), stock.generate(pixel_values=pixels, max_length=10, **options)
    )
