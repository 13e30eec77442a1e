"""The memory of a training step above weights and gradients, beside stock transformers (Linux only).

Each way has a process of its own, which takes two steps and reads how far its memory rose in the second.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import torch
import transformers
from transformers import GitConfig

from benchmarks import Figure
from benchmarks.model import LENGTH, captions, ours, stock
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.runtime.torch_memory import peak_memory

PICTURES = 8
RUNS = 3


def rise(way: str) -> float:
    """Megabytes that this process's memory rises in a step."""
    torch.manual_seed(0)
    batch = captions(1, PICTURES)
    if way == "ours":
        step = ours(GitForCausalLM(GitConfig()), batch)
    else:
        step = stock(transformers.GitForCausalLM(GitConfig()), batch, LENGTH)
    step()  # gradients and the library's own buffers are there from now on
    gc.collect()
    with peak_memory(torch.device("cpu")) as rose:
        step()
    return rose() / 1e6


def figures() -> list[Figure]:
    """One figure: ours over stock."""

    def measured(way: str) -> float:
        command = [sys.executable, "-c", f"from benchmarks.memory import rise; print(rise({way!r}))"]
        found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(RUNS)]
        return sorted(json.loads(line) for line in found)[RUNS // 2]

    mine, theirs = measured("ours"), measured("stock")
    return [
        Figure(
            figure=f"memory of a training step above weights and gradients, {PICTURES} pictures, 1 caption, float32",
            value=round(mine / theirs, 3),
            unit="x",
            goal=0.5,
            better="lower",
            runs=RUNS,
            a=f"ours: {mine:,.0f} MB",
            b=f"stock, padded to the batch: {theirs:,.0f} MB",
        )
    ]
