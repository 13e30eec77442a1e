"""Training steps and captions of a full-size GIT-base (176 M parameters, random weights), beside stock transformers.

The notebook's way is what most tutorials do: every caption padded to 512 tokens, and the loss on the padding too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from transformers import GitConfig

from benchmarks import Figure, apart, ratio, seconds
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.precision import autocast
from pipeline.runtime.torch_memory import keep_freed_memory

PICTURES, LENGTH, NOTEBOOK_LENGTH = 4, 20, 512
RUNS = 3
SIDE = 3072  # of the square matrices whose product tells how fast a machine computes


def best_rate(dtype: torch.dtype) -> float:
    """Operations a second of the best of several matrix products."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / min(seconds(lambda: a @ b) for _ in range(6))


def captions(each: int, pictures: int = PICTURES) -> tuple[torch.Tensor, ...]:
    """Random pictures with `each` captions of 20 tokens: pixels, tokens, mask, picture of each caption."""
    picture_of = torch.arange(pictures).repeat_interleave(each)
    ids = torch.randint(1000, 30_000, (len(picture_of), LENGTH))
    return torch.randn(pictures, 3, 224, 224), ids, torch.ones_like(ids), picture_of


def ours(
    model: GitForCausalLM, batch: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """Forward and backward, the prefix shared by a picture's captions."""

    def step() -> None:
        model.zero_grad(set_to_none=False)
        with autocast(torch.device("cpu"), dtype):
            loss, tokens = model.caption_loss(*batch)
        (loss / tokens).backward()

    return step


def frozen(
    model: GitForCausalLM, batch: tuple[torch.Tensor, ...], dtype: torch.dtype = torch.float32
) -> Callable[[], object]:
    """As `ours`, from the second epoch on with a frozen image encoder: its features are read, not computed."""
    pixels, *rest = batch
    with torch.no_grad():
        features = model.encode(pixels)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        with autocast(torch.device("cpu"), dtype):
            loss, tokens = model.caption_loss(None, *rest, features=features)
        (loss / tokens).backward()

    return step


def stock(model: transformers.GitForCausalLM, batch: tuple[torch.Tensor, ...], length: int) -> Callable[[], object]:
    """Forward and backward as the library does it: a picture for each caption, captions padded to `length`."""
    pixels, ids, mask, picture_of = batch
    padded, padded_mask = (torch.nn.functional.pad(x, (0, length - x.shape[1])) for x in (ids, mask))

    def step() -> None:
        model.zero_grad(set_to_none=False)
        rows = {"input_ids": padded, "attention_mask": padded_mask, "pixel_values": pixels[picture_of]}
        model(**rows, labels=padded).loss.backward()

    return step


def ours_apart(each: int, dtype: torch.dtype) -> Callable[[], object]:
    """`ours` as `finetune` runs it."""
    keep_freed_memory()
    return ours(GitForCausalLM(GitConfig()), captions(each), dtype)


def frozen_apart(each: int, dtype: torch.dtype) -> Callable[[], object]:
    """`frozen` as `finetune` runs it."""
    keep_freed_memory()
    return frozen(GitForCausalLM(GitConfig()), captions(each), dtype)


def stock_apart(each: int, length: int) -> Callable[[], object]:
    """`stock` as people run it."""
    return stock(transformers.GitForCausalLM(GitConfig()), captions(each), length)


def figures() -> list[Figure]:
    """Training with one and five captions a picture, and captioning by beam search and by sampling.

    Beside stock both compute in float32; beside the notebook's way, which does, ours computes in what is faster here.
    """
    whole = torch.float32
    best = max(torch.float32, torch.bfloat16, key=best_rate)
    format_of = {dtype: str(dtype).removeprefix("torch.") for dtype in (whole, best)}
    notebook = ("the notebook's way, 1 caption", stock_apart, (1, NOTEBOOK_LENGTH))
    padded = "stock, padded to the batch"
    # Per caption, where ours has five times as many in a step.
    compared = [
        ("training, 5 captions a picture", 4.5, (padded, stock_apart, (5, LENGTH)), (ours_apart, 5, whole), 1),
        ("training, 1 caption a picture", 1.3, (padded, stock_apart, (1, LENGTH)), (ours_apart, 1, whole), 1),
        ("training, 5 captions a picture, per caption", 28.0, notebook, (ours_apart, 5, best), 5),
        ("frozen encoder, second epoch, 5 captions, per caption", 50.0, notebook, (frozen_apart, 5, best), 5),
    ]
    results = []
    for name, goal, (a, of_a, args_a), (of_b, each, dtype), scale in compared:
        with apart(of_a, *args_a) as one, apart(of_b, each, dtype) as other:
            b = f"ours, {each} caption{'s' * (each > 1)}, {format_of[dtype]}"
            results.append(ratio(name, (f"{a}, float32", one), (b, other), goal, RUNS, better="higher", scale=scale))

    torch.manual_seed(0)
    mine, theirs = GitForCausalLM(GitConfig()), transformers.GitForCausalLM(GitConfig())
    theirs.load_state_dict(mine.state_dict())
    mine.eval()
    theirs.eval()
    pictures = torch.randn(8, 3, 224, 224)
    length = {"min_length": LENGTH, "max_length": LENGTH}
    ways = [
        ("captions by beam search, 4 beams, 8 pictures", 3.5, {"num_beams": 4, "do_sample": False}),
        ("5 sampled captions of each of 8 pictures", 4.0, {"num_return_sequences": 5, "do_sample": True}),
    ]
    for name, goal, how in ways:
        a = ("stock generate", lambda how=how: theirs.generate(pixel_values=pictures, **length, **how))
        b = ("ours", lambda how=how: mine.caption(pictures, **length, **how))
        results.append(ratio(f"{name}, float32", a, b, goal, RUNS, better="higher"))
    return results
