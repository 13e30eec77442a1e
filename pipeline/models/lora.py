"""LoRA: train low-rank updates of linear layers instead of their weights.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": a projection W becomes W + alpha / rank * B A, and
only the narrow A and B are trained. The saved checkpoint is plain: the updates are merged into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from pipeline.config.sections.finetune import Lora


def inject_lora(model: torch.nn.Module, settings: Lora, targets: str) -> None:
    """Add LoRA adapters to a model and freeze everything else; torch's seed decides their initial values.

    Args:
        model: changed in place.
        settings: a rank of at least 1.
        targets: regular expression for the full names of the adapted layers, see `CaptionModel.lora_targets`.
    """
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets
    )
    inject_adapter_in_model(config, model)


def take_merged(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Continue from plain weights, like those of `merged_weights`: the updates start from zero again.

    Args:
        model: changed in place; with or without adapters.
        weights: under their plain names.
    """
    state = model.state_dict()
    taken = {
        name: torch.zeros_like(tensor) if ".lora_B." in name else weights.get(name.replace(".base_layer.", "."), tensor)
        for name, tensor in state.items()
    }
    model.load_state_dict(taken)


def merged_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's weights under their plain names, with the LoRA updates added.

    The model itself does not change: adding the updates in place and subtracting them again would change bits.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    weights = {}
    for name, tensor in model.state_dict().items():
        owner, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            weights[f"{owner}.weight"] = tensor + adapted[owner].get_delta_weight("default")
        elif rest:
            weights[f"{owner}.{rest}"] = tensor
        elif ".lora_" not in name:
            weights[name] = tensor
    return weights
