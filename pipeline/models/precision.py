"""The number format of matrix products in training and captioning; weights and optimizer always stay in float32."""

from __future__ import annotations

import torch


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for `precision`: `float32`, `bfloat16`, or `auto`.

    `auto` is bfloat16 on a GPU with native support, else float32. A CPU's bfloat16 instructions do not guarantee a
    gain: a training step took 0.5 times as long with them on one machine with AVX512-BF16, and 1.8 times as long on
    another. So on a CPU bfloat16 is used only if named.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which matrix products are computed in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def describe(device: torch.device, dtype: torch.dtype, processes: int = 1) -> str:
    """Return, for example, "float32 on cpu" or "bfloat16 on cuda, by 2 processes"."""
    several = f", by {processes} processes" if processes > 1 else ""
    return f"{str(dtype).removeprefix('torch.')} on {device.type}{several}"
