"""Names of MLflow runs for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path


def run_name(sources: Sequence[str], checkpoint: str) -> str:
    """Return a name for a new run: date, data and checkpoint, like `2026-11-26 sample git-demo`.

    Args:
        sources: names of the data sources.
        checkpoint: the checkpoint that training starts from: a folder, or a name on the Hugging Face Hub.
    """
    data = "+".join(sources) if len(sources) <= 3 else f"{len(sources)} sources"
    return f"{datetime.now().astimezone():%Y-%m-%d} {data} {Path(checkpoint).name}"
