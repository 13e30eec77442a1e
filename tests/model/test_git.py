"""The loss is plain next-token cross-entropy on caption tokens, and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers import GitConfig, GitForCausalLM

from pipeline.model.git import caption_loss


@pytest.fixture(scope="module")
def model() -> GitForCausalLM:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    return GitForCausalLM(config).eval()


LENGTHS = [7, 4, 2]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    ids = torch.randint(5, 50, mask.shape) * mask
    return torch.randn(len(LENGTHS), 3, 32, 32), ids, mask


def test_it_equals_cross_entropy_computed_a_token_at_a_time(model: GitForCausalLM) -> None:
    pixels, ids, mask = batch()
    expected = 0.0
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            for t in range(1, length):
                # only what stands before token t is given, so nothing can leak from behind
                logits = model(input_ids=ids[row : row + 1, :t], pixel_values=pixels[row : row + 1]).logits[0, -1]
                expected -= logits.log_softmax(-1)[ids[row, t]].item()
        loss, tokens = caption_loss(model, pixels, ids, mask)
    assert tokens.item() == sum(LENGTHS) - len(LENGTHS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_it_equals_the_librarys_loss(model: GitForCausalLM) -> None:
    pixels, ids, mask = batch()
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        loss, tokens = caption_loss(model, pixels, ids, mask)
        theirs = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels).loss
    assert (loss / tokens).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_padding_never_changes_it(model: GitForCausalLM) -> None:
    pixels, ids, mask = batch()
    wider = torch.nn.functional.pad(ids, (0, 9), value=17)
    with torch.no_grad():
        loss, tokens = caption_loss(model, pixels, ids, mask)
        padded, padded_tokens = caption_loss(model, pixels, wider, torch.nn.functional.pad(mask, (0, 9)))
    assert tokens == padded_tokens
    assert padded.item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_picture_matters(model: GitForCausalLM) -> None:
    pixels, ids, mask = batch()
    with torch.no_grad():
        loss, _ = caption_loss(model, pixels, ids, mask)
        other, _ = caption_loss(model, pixels.flip(0), ids, mask)
    assert abs(loss.item() - other.item()) > 1e-4
