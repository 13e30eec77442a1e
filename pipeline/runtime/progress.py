"""Progress bars: on a terminal as usual; a line now and then where a flow reads along; elsewhere none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# Set by who reads the output: a line every so many seconds, the first after as many.
READ_ALONG = "IMAGE_CAPTIONING_PROGRESS"
_LINE = "{desc}: {percentage:3.0f}% {n_fmt} of {total_fmt}{unit}, {elapsed} gone, {remaining} left"


class _Lines:
    """Writes what tqdm would write over its last line as lines of their own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(items: Iterable[Any] | None = None, *, shown: bool = True, **settings: Any) -> tqdm:
    """A bar over `items`, or one that is moved by hand.

    Args:
        items: what is gone through, if anything.
        shown: whether it is shown at all.
        settings: tqdm's own, like `desc`, `total` and `unit`.
    """
    if not shown:
        return tqdm(items, disable=True, **settings)
    if seconds := os.environ.get(READ_ALONG):
        return tqdm(
            items, file=_Lines(), mininterval=float(seconds), delay=float(seconds), bar_format=_LINE, **settings
        )
    return tqdm(items, disable=None, **settings)
