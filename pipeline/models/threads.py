"""How many CPU threads compute a model."""

from __future__ import annotations

import os
from functools import cache

import torch

# Parameters. Measured on two idle cores: with one thread instead of two, three epochs of git-demo (1.4 million) took
# 0.99 times as long, two of cnn-attention (6.4 million) 0.98 times. On a busy machine threads wait for each other:
# there, two threads took more than three times as long.
SMALL = 10_000_000


def suit_threads(parameters: int) -> None:
    """Compute with one thread from now on if a model is small, else with as many as torch chooses.

    The bits of a result depend on the number of threads, so the number depends on the model only, not on the load. A
    number in the environment (`OMP_NUM_THREADS`) stays.

    Args:
        parameters: number of parameters of the model.
    """
    chosen_by_torch = _chosen_by_torch()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if parameters < SMALL else chosen_by_torch)


@cache
def _chosen_by_torch() -> int:
    return torch.get_num_threads()
