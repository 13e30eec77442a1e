"""Memory of this process: keeping what is freed, and measuring what a piece of work needs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep what it frees (glibc; elsewhere nothing happens).

    glibc gives large blocks back at once and gets them anew, as pages that the kernel has to clear: 15 % of a training
    step of GIT-base on a CPU. Every step needs the same blocks, so the most that is used hardly rises (by 4 %).
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def memory_in_use(device: torch.device) -> int:
    """The bytes of a GPU that torch has taken for this process; on a CPU, those of the process."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Give a function that tells, after the block, how many bytes it needed above those that were in use before.

    Of a CPU known on Linux only; elsewhere 0.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept is not in use
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _status("VmRSS")
    except (OSError, AttributeError):
        yield lambda: 0
        return
    yield lambda: _status("VmHWM") - before


def _status(key: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:")]
    return 1024 * int(line.split()[1])
