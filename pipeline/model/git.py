"""The one module that knows GIT's forward pass: the loss of captions given their pictures.

GIT is a prefix language model: the tokens of the picture come first and never look at the text; each
token of the caption looks at the picture and at the caption before it.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy
from transformers import GitForCausalLM


def caption_loss(
    model: GitForCausalLM, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of predicting each caption's tokens from those before it: its sum, and how many it sums.

    Padding and picture positions are never predicted. `GitForCausalLM`'s own loss is not used: its label
    shift was wrong in releases from 4.49 to mid-2026 (huggingface/transformers#47394), and it runs the
    vocabulary head on every picture position.

    Args:
        pixel_values: `(captions, 3, height, width)`, a picture a caption.
        input_ids: `(captions, length)`, from the beginning mark to the end mark, then padding.
        attention_mask: `(captions, length)`, 1 on tokens and 0 on padding.

    """
    length = input_ids.shape[1]
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pixel_values=pixel_values,
        logits_to_keep=length,
        use_cache=False,
    ).logits
    is_target = attention_mask[:, 1:].bool()
    loss = cross_entropy(logits[:, :-1][is_target].float(), input_ids[:, 1:][is_target], reduction="sum")
    return loss, is_target.sum()
