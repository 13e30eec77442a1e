"""How many CPU threads compute a model."""

from __future__ import annotations

import os
from functools import cache

import torch

# Parameters. Measured on two cores with git-demo (1.4 million), three epochs: on the idle machine 31 s with one thread,
# 32 s with two; beside eight busy processes 165 s and 207 s, because threads wait for each other. On a busier machine
# two threads took up to four times as long as one. cnn-attention (6.4 million) took as long with one as with two.
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
