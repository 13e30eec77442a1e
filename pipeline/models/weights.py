"""What identifies a checkpoint: a hash of all that decides what it says."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import paths
from pipeline.runtime.atomic_files import sha256_of


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, configuration, tokenizer and image processor.

    The note of how it was made (`training.json`) does not count.
    """
    files = [
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".txt"} and p.name != paths.TRAINING.name
    ]
    return sha256_of(*sorted(files))
