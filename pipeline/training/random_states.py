"""The states of torch's random generators: of the CPU, and of the GPU that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states by the type of their device, bytes in CPU memory."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], device)


@contextmanager
def unchanged_random_states(device: torch.device) -> Iterator[None]:
    """Restore the states after the block."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)
