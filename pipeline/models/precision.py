"""The number format of the training's arithmetic; weights and optimizer always stay in float32."""

from __future__ import annotations

import torch


def chosen(precision: str, device: torch.device) -> torch.dtype:
    """The format to compute in: `float32` or `bfloat16` as named; for `auto` what does well on the device.

    `auto` is bfloat16 on a GPU that computes it natively, else float32. On a CPU, that it has bfloat16
    instructions does not tell whether they pay: a training step took 0.5 times as long with them on one
    machine with AVX512-BF16, and 1.8 times as long on another. So there it is used by name only.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def computing(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products are computed in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def in_words(device: torch.device, dtype: torch.dtype, processes: int = 1) -> str:
    """Such as "float32 on cpu", or "bfloat16 on cuda, by 2 processes"."""
    several = f", by {processes} processes" if processes > 1 else ""
    return f"{str(dtype).removeprefix('torch.')} on {device.type}{several}"
