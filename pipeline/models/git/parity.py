"""Check before training that our forward and backward pass and generation equal the installed transformers'."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import GitConfig

from pipeline.config.errors import ConfigError
from pipeline.models.git.modeling import GitForCausalLM

_TOLERANCE = 1e-4  # nats per token; in float32 the difference is about 1e-7
_GRADIENT_TOLERANCE = 1e-3  # of the largest gradient; in float32 the difference is about 1e-6
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SEARCH: dict[str, Any] = {"num_beams": 2, "do_sample": False, "max_length": 8}


def check(device: torch.device) -> None:
    """Compare the loss of captions of two pictures, its gradient, and captions by beam search.

    A tiny model in float32 does this on the device that will train; on a CPU it takes 0.13 s of CPU time. Random states
    do not change.

    Raises:
        ConfigError: transformers computes something else; names its version.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stock, model = transformers.GitForCausalLM(_config()), GitForCausalLM(_config())
        pictures, tokens = torch.randn(2, 3, 8, 8).to(device), torch.randint(1, 12, (3, 6)).to(device)
    model.load_state_dict(stock.state_dict())
    stock.to(device).eval()
    model.to(device).eval()
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4]])).long().to(device)
    for picture_of in (torch.tensor([1, 0, 1], device=device), torch.tensor([1, 0], device=device)):
        captions = len(picture_of)  # one each takes another way, see `Packing.mask`
        _compare_losses(stock, model, (pictures, tokens[:captions], mask[:captions], picture_of))
    found, expected = model.caption(pictures, **_SEARCH), stock.generate(pixel_values=pictures, **_SEARCH)
    if not torch.equal(found, expected):
        raise _differs("caption", f"{expected.tolist()}, not {found.tolist()}")


def _compare_losses(stock: transformers.GitForCausalLM, model: GitForCausalLM, batch: tuple[torch.Tensor, ...]) -> None:
    pictures, tokens, mask, picture_of = batch
    summed, count = model.caption_loss(pictures, tokens, mask, picture_of)
    logits = stock(input_ids=tokens, attention_mask=mask, pixel_values=pictures[picture_of]).logits
    is_target = mask[:, 1:].bool()
    ours = summed / count
    theirs = cross_entropy(logits[:, -tokens.shape[1] : -1][is_target], tokens[:, 1:][is_target])
    off = abs(ours - theirs).item()
    if not off < _TOLERANCE:
        raise _differs("loss", f"off by {off:.3g} nats a token")
    mine, other = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(of.parameters()))])
        for loss, of in ((ours, model), (theirs, stock))
    )
    off = ((mine - other).abs().max() / other.abs().max()).item()
    if not off < _GRADIENT_TOLERANCE:
        raise _differs("gradient", f"off by {off:.3g} of its maximum")


def _config() -> GitConfig:
    return GitConfig(
        vision_config={**_SIZES, "image_size": 8, "patch_size": 4},
        vocab_size=12,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **_SIZES,
    )


def _differs(what: str, found: str) -> ConfigError:
    return ConfigError(
        f"transformers {version('transformers')}: its GIT computes another {what} than ours ({found}), so training"
        " results would be wrong; install the version in requirements.lock"
    )
