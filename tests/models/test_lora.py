"""LoRA trains few parameters, and the saved checkpoint is plain and computes the same loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pipeline.config.sections.finetune import Lora
from pipeline.models.factory import load
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.lora import inject_lora, merged_weights
from pipeline.training.optimization import adamw
from tests.models.git.test_checkpoint import small
from tests.models.git.test_modeling import batch, config

SETTINGS = Lora(rank=4, alpha=8.0, dropout=0.1)


def train(image_encoder: bool, steps: int = 4) -> GitForCausalLM:
    torch.manual_seed(0)
    model = GitForCausalLM(config(dropout=0.1))
    inject_lora(model, SETTINGS, model.lora_targets(image_encoder))
    optimizer = adamw(model, 0.05, 0.0)
    for _ in range(steps):
        loss, tokens = model.caption_loss(*batch())
        optimizer.zero_grad()
        (loss / tokens).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("image_encoder", [True, False])
def test_only_adapters_are_trained(image_encoder: bool) -> None:
    torch.manual_seed(0)
    before = GitForCausalLM(config(dropout=0.1)).state_dict()
    model = train(image_encoder)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(".lora_" in name for name in trained)
    assert any("image_encoder" in name for name in trained) == image_encoder
    # Four projections per layer with two matrices each; three text layers, two image layers.
    assert len(trained) == 8 * (3 + (2 if image_encoder else 0))
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer", "")]), name


def test_the_saved_checkpoint_is_plain_and_has_the_same_loss(tmp_path: Path) -> None:
    model = train(image_encoder=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=merged_weights(model))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())  # training can continue
    stock, info = transformers.GitForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours = GitForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, tokens = model.caption_loss(*batch())
        loss, _ = ours.caption_loss(*batch())
        untrained, _ = train(image_encoder=True, steps=0).caption_loss(*batch())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert expected < untrained - 0.1 * tokens
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_checkpoint_can_be_saved_with_other_weights(tmp_path: Path) -> None:
    checkpoint = small()
    weights = {name: tensor + 1 for name, tensor in checkpoint.model.state_dict().items()}
    checkpoint.save(tmp_path, weights)
    assert torch.equal(load(tmp_path).model.output.weight, checkpoint.model.output.weight + 1)
