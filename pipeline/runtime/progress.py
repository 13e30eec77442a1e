"""Progress bars: tqdm on a terminal, a line every few seconds for a flow that reads the output, else none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# Environment variable, set by the reader of the output: seconds between two lines of progress.
READ_ALONG = "IMAGE_CAPTIONING_PROGRESS"
_LINE = "{desc}: {percentage:3.0f}% {n_fmt} of {total_fmt}{unit}, {elapsed} elapsed, {remaining} left"


class _Lines:
    """Writes each update of a tqdm bar as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(items: Iterable[Any] | None = None, *, shown: bool = True, **settings: Any) -> tqdm:
    """Return a bar over `items`, or one that the caller updates.

    Args:
        items: the items to iterate over, if any.
        shown: whether the bar is shown at all.
        settings: arguments of tqdm, like `desc`, `total` and `unit`.
    """
    if not shown:
        return tqdm(items, disable=True, **settings)
    if seconds := os.environ.get(READ_ALONG):
        return tqdm(
            items, file=_Lines(), mininterval=float(seconds), delay=float(seconds), bar_format=_LINE, **settings
        )
    return tqdm(items, disable=None, **settings)
