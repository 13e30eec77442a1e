"""LoRA: in place of the weights, low-rank changes of attention's projections are learned.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": a projection W becomes W + alpha / rank * B A, of
which only the narrow A and B are trained. What is saved is a plain checkpoint, with the changes added to the weights.
"""

from __future__ import annotations

import torch

from pipeline.config.sections.finetune import Lora

_DECODER = r"git\.encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)"
_IMAGE_ENCODER = r"git\.image_encoder\..+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"


def add_lora(model: torch.nn.Module, settings: Lora, image_encoder: bool) -> None:
    """Give the attention of a GIT model changes to learn, and freeze all else; torch's seed decides their beginning.

    Args:
        model: changed in place.
        settings: a rank of at least 1.
        image_encoder: whether the image encoder learns too, or the decoder alone.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = f"{_DECODER}|{_IMAGE_ENCODER}" if image_encoder else _DECODER
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets
    )
    inject_adapter_in_model(config, model)


def plain_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model under their plain names, with what `add_lora` let it learn added to them.

    The model is left as it is: adding the changes in place and taking them off again would not give the same bits.
    """
    from peft.tuners.lora import LoraLayer

    changed = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    weights = {}
    for name, tensor in model.state_dict().items():
        owner, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            weights[f"{owner}.weight"] = tensor + changed[owner].get_delta_weight("default")
        elif rest:
            weights[f"{owner}.{rest}"] = tensor
        elif ".lora_" not in name:
            weights[name] = tensor
    return weights
