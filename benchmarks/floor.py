"""How far the floor is: the arithmetic rate of a training step beside this machine's own best matrix product.

Counted are the operations that the mathematics needs, not those that were executed; a multiplication and an
addition count as two. Writes the profile of a step to benchmarks/results/profile.txt too.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch.profiler import profile
from transformers import GitConfig

from benchmarks import Figure, seconds
from benchmarks.model import LENGTH, PICTURES, best_rate, captions
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.precision import autocast
from pipeline.runtime.torch_memory import keep_freed_memory

EACH = 5  # captions a picture
RUNS = 5
GOALS = {torch.float32: 0.78, torch.bfloat16: 0.62}
PROFILE = Path(__file__).parent / "results" / "profile.txt"


def needed(config: GitConfig, pictures: int, each: int, length: int) -> int:
    """Operations of a step, forward and backward, for `each` captions of `length` tokens of each picture."""
    vision, width = config.vision_config, config.hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    seen = patches + 1
    read = length - 1  # the last token is only predicted

    def layer(tokens: int, hidden: int, inner: int) -> int:
        return 2 * tokens * (4 * hidden * hidden + 2 * hidden * inner)

    def attention(pairs: int, hidden: int) -> int:
        return 4 * pairs * hidden  # scores and their use

    encoder = vision.num_hidden_layers * (
        layer(seen, vision.hidden_size, vision.intermediate_size) + attention(seen**2, vision.hidden_size)
    )
    stem = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    projection = 2 * seen * vision.hidden_size * width
    layers, inner = config.num_hidden_layers, config.intermediate_size
    prefix = (layers - 1) * (layer(seen, width, inner) + attention(seen**2, width)) + 2 * seen * 2 * width**2
    pairs = sum(seen + position + 1 for position in range(read))
    text = each * (
        layers * (layer(read, width, inner) + attention(pairs, width)) + 2 * read * width * config.vocab_size
    )
    forward = encoder + stem + projection + prefix + text
    return pictures * (3 * forward - stem)  # backward is twice forward, but nothing needs the gradient of pixels


def figures() -> list[Figure]:
    """The rates in float32 and bfloat16."""
    keep_freed_memory()  # as `finetune` does
    torch.manual_seed(0)
    model, batch = GitForCausalLM(GitConfig()), captions(EACH)
    operations = needed(model.config, PICTURES, EACH, LENGTH)

    def step(dtype: torch.dtype) -> None:
        model.zero_grad()
        with autocast(torch.device("cpu"), dtype):
            loss, tokens = model.caption_loss(*batch)
        (loss / tokens).backward()

    results = []
    for dtype, goal in GOALS.items():
        step(dtype)
        pairs = [(best_rate(dtype), operations / seconds(lambda dtype=dtype: step(dtype))) for _ in range(RUNS)]
        best, rate = (statistics.median(column) for column in zip(*pairs, strict=True))
        results.append(
            Figure(
                figure=f"arithmetic rate of a training step, 5 captions a picture, {str(dtype).removeprefix('torch.')}",
                value=round(rate / best, 3),
                unit="of the best matrix product",
                goal=goal,
                better="higher",
                runs=RUNS,
                a=f"a step: {rate / 1e9:.0f} GFLOP/s",
                b=f"matrix product: {best / 1e9:.0f} GFLOP/s",
            )
        )
    with profile() as profiled:
        step(torch.float32)
    table = profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=50)
    PROFILE.parent.mkdir(exist_ok=True)
    PROFILE.write_text(table)
    return results
