"""The identity of a checkpoint: a hash of everything that its captions depend on."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import paths
from pipeline.runtime.atomic_files import sha256_of


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights, configuration, tokenizer and image processor.

    `training.json`, the record of how it was trained, is left out.
    """
    files = [
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".txt"} and p.name != paths.TRAINING.name
    ]
    return sha256_of(*sorted(files))
