"""Check before training that our forward pass equals that of the installed transformers."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch.nn.functional import cross_entropy
from transformers import GitConfig

from pipeline.config.errors import ConfigError
from pipeline.models.git.modeling import GitForCausalLM

_TOLERANCE = 1e-4  # nats per token; in float32 the difference is about 1e-7
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def check_loss() -> None:
    """Compare the loss of three captions of two pictures on a tiny model; this takes milliseconds.

    Torch's random state does not change.

    Raises:
        ConfigError: transformers computes a different loss; names its version.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = GitConfig(
            vision_config={**_SIZES, "image_size": 8, "patch_size": 4},
            vocab_size=12,
            initializer_range=0.5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **_SIZES,
        )
        model = GitForCausalLM(config).eval()
        pictures, picture_of = torch.randn(2, 3, 8, 8), torch.tensor([1, 0, 1])
        tokens = torch.randint(1, 12, (3, 6))
        mask = (torch.arange(6) < torch.tensor([[6], [3], [4]])).long()
        ours, count = model.caption_loss(pictures, tokens, mask, picture_of)
        stock = model(input_ids=tokens, attention_mask=mask, pixel_values=pictures[picture_of]).logits[:, -6:-1]
        is_target = mask[:, 1:].bool()
        theirs = cross_entropy(stock[is_target], tokens[:, 1:][is_target], reduction="sum")
        off = abs((ours - theirs) / count).item()
    if not off < _TOLERANCE:
        raise ConfigError(
            f"transformers {version('transformers')}: its GIT computes another loss than ours (off by {off:.3g} nats a"
            " token), so training results would be wrong; install the version in requirements.lock"
        )
