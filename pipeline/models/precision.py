"""The number format of matrix products in training and captioning; weights and optimizer always stay in float32."""

from __future__ import annotations

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype for `precision`: `float32`, `bfloat16`, `float16`, or `auto`.

    `auto` is bfloat16 on a CUDA GPU with native support, float16 on an older one, and float32 elsewhere. A CPU's
    bfloat16 instructions do not guarantee a gain: a training step took 0.5 times as long with them on one machine with
    AVX512-BF16, and 1.8 times as long on another. So on a CPU half precision is used only if named.
    """
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def captioning_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for captioning: bfloat16 on a CUDA GPU with native support, else float32.

    Never float16: a checkpoint may exceed its range. In training the loss shows that, in a caption nothing would.
    """
    dtype = compute_dtype("auto", device)
    return torch.float32 if dtype == torch.float16 else dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which matrix products are computed in `dtype`."""
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if half else torch.bfloat16, enabled=half)


def loss_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return the scaler of a training's losses; it does nothing unless `dtype` is float16.

    float16 loses digits below 6e-5, and gradients are often smaller. So the loss is multiplied by a power of two, which
    halves when a gradient exceeds the range of float16 (that step is skipped) and doubles after 2,000 steps without
    (Micikevicius et al. 2018, "Mixed Precision Training").
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def describe(device: torch.device, dtype: torch.dtype, processes: int = 1) -> str:
    """Return, for example, "float32 on cpu" or "bfloat16 on cuda, by 2 processes"."""
    several = f", by {processes} processes" if processes > 1 else ""
    return f"{str(dtype).removeprefix('torch.')} on {device.type}{several}"
