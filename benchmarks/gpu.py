"""Training steps and captions of a GIT-base (176 M parameters, random weights) on a GPU; left out without one.

It answers what can't be answered on a CPU: whether torch's own operations beat those written for CPUs there, what an
attention without a mask brings, what reading ahead into pinned memory brings, and how far stock transformers is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
import transformers
from transformers import GitConfig

from benchmarks import Figure, UnavailableError, ratio
from pipeline.models.device import best_device
from pipeline.models.git import ops
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.git.packing import Packing
from pipeline.models.inputs import Batch
from pipeline.models.precision import autocast, compute_dtype
from pipeline.training.loader import ahead

LENGTH = 20  # tokens of a caption
STEPS = 10  # of a run
RUNS = 5


def figures() -> list[Figure]:
    """All figures, on this machine's GPU in the format that `finetune.precision: auto` chooses."""
    device = best_device()
    if device.type == "cpu":
        raise UnavailableError("needs a GPU")
    return figures_on(device, compute_dtype("auto", device), GitConfig(), pictures=32)


def figures_on(device: torch.device, dtype: torch.dtype, config: GitConfig, pictures: int) -> list[Figure]:
    """All figures on a device, for a GIT of these sizes and this many pictures in a batch."""
    torch.manual_seed(0)
    mine, theirs = GitForCausalLM(config), transformers.GitForCausalLM(config)
    theirs.load_state_dict(mine.state_dict())
    mine.to(device).eval()
    theirs.to(device).eval()
    five, one = (batch_of(config, pictures, each) for each in (5, 1))
    results = []

    def steps(batches: Iterable[Batch]) -> None:
        for batch in batches:
            step(mine, batch.to(device), dtype)

    for name, batch in (("5 captions a picture", five), ("1 caption a picture", one)):
        here = batch.to(device)
        ours = timed(device, lambda batch=here: step(mine, batch, dtype))
        stock = timed(device, lambda batch=here: stock_step(theirs, batch, dtype))
        results.append(_figure(f"training, {name}", ("stock, padded to the batch", stock), ("ours", ours)))
        slower = timed(device, lambda batch=here: by_hand(lambda: step(mine, batch, dtype)))
        written = ("written for CPUs", slower)
        results.append(_figure(f"training, {name}, operations", written, ("torch's", ours)))
    here = one.to(device)
    dense = timed(device, lambda: with_dense_masks(lambda: step(mine, here, dtype)))
    plain = timed(device, lambda: step(mine, here, dtype))
    results.append(_figure("training, 1 caption a picture, mask", ("in memory", dense), ("causal", plain)))
    if device.type == "cuda":
        one_by_one = timed(device, lambda: steps(copies(five)))
        pinned = timed(device, lambda: steps(ahead(batch.pinned() for batch in copies(five))))
        results.append(_figure(f"{STEPS} batches", ("one by one", one_by_one), ("ahead, pinned", pinned)))
    pixels = torch.randn(8, 3, config.vision_config.image_size, config.vision_config.image_size, device=device)
    length = {"min_length": LENGTH, "max_length": LENGTH}
    for name, how in (("4 beams", {"num_beams": 4}), ("5 samples", {"num_return_sequences": 5})):
        options = {**length, **how, "do_sample": name == "5 samples"}
        stock = timed(device, lambda options=options: generate(theirs.generate, pixels, dtype, options))
        ours = timed(device, lambda options=options: generate(mine.caption, pixels, dtype, options))
        results.append(_figure(f"captions of 8 pictures, {name}", ("stock generate", stock), ("ours", ours)))
    where = f" ({str(dtype).removeprefix('torch.')} on {device.type})"
    return [replace(figure, figure=figure.figure + where) for figure in results]


def _figure(name: str, a: tuple[str, Callable[[], object]], b: tuple[str, Callable[[], object]]) -> Figure:
    return ratio(name, a, b, 1.0, RUNS, better="higher")


def timed(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """`work`, which returns when the device has done it."""

    def done() -> None:
        work()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()

    return done


def batch_of(config: GitConfig, pictures: int, each: int) -> Batch:
    """Random pictures with `each` captions of 20 tokens, in CPU memory."""
    side = config.vision_config.image_size
    picture_of = torch.arange(pictures).repeat_interleave(each)
    ids = torch.randint(3, config.vocab_size, (len(picture_of), LENGTH))
    return Batch(torch.randn(pictures, 3, side, side), ids, torch.ones_like(ids), picture_of)


def copies(batch: Batch) -> Iterator[Batch]:
    """A new copy of a batch for each step, as a loader makes them."""
    for _ in range(STEPS):
        yield replace(batch, **{k: v.clone() for k, v in vars(batch).items() if v is not None})


def step(model: GitForCausalLM, batch: Batch, dtype: torch.dtype) -> None:
    """Forward and backward, the prefix shared by a picture's captions."""
    model.zero_grad()
    with autocast(batch.input_ids.device, dtype):
        loss, tokens = model.caption_loss(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of)
    (loss / tokens).backward()


def stock_step(model: transformers.GitForCausalLM, batch: Batch, dtype: torch.dtype) -> None:
    """Forward and backward as the library does it: a picture for each caption."""
    assert batch.pixel_values is not None
    model.zero_grad()
    with autocast(batch.input_ids.device, dtype):
        rows = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        loss = model(**rows, pixel_values=batch.pixel_values[batch.picture_of], labels=batch.input_ids).loss
    loss.backward()


def by_hand(work: Callable[[], object]) -> None:
    """Do `work` with the operations that were written for CPUs."""
    with ops.computed(by_hand=True):
        work()


def with_dense_masks(work: Callable[[], object]) -> None:
    """Do `work` with a mask in memory, also where all captions are alone with their picture."""
    mask = Packing.mask
    Packing.mask = lambda self, tokens, dtype, is_dense: mask(self, tokens, dtype, True)  # type: ignore[method-assign]
    try:
        work()
    finally:
        Packing.mask = mask  # type: ignore[method-assign]


def generate(
    function: Callable[..., object], pixels: torch.Tensor, dtype: torch.dtype, options: dict[str, object]
) -> None:
    """Caption pictures."""
    with torch.inference_mode(), autocast(pixels.device, dtype):
        function(pixel_values=pixels, **options)
