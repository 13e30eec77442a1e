"""The device that trains and captions."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return a CUDA GPU if there is one, else Apple's GPU (MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
