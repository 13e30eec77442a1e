"""The Java tokenizer that coco-caption runs, to compare ours with; needs Java and `pycocoevalcap`."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

PUNCTUATION = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]


def needed() -> Path:
    """Return the path of the jar; skip the test without it or without Java."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations or shutil.which("java") is None:
        pytest.skip("needs Java and pycocoevalcap 1.2 (pip install --no-deps pycocoevalcap==1.2)")
    return Path(found.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"


def tokenized(captions: Sequence[str], apart: bool = True) -> list[list[str]]:
    """Return the words of each caption.

    Args:
        captions: texts without line separators.
        apart: whether to put a line between captions, so that none depends on the next.
    """
    jar = needed()
    lines = [line for caption in captions for line in ((caption, "q") if apart else (caption,))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_bytes("\n".join(lines).encode())
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, str(file)], capture_output=True, check=True)
    said = done.stdout.decode().split("\n")[: len(lines) : 2 if apart else 1]
    assert len(said) == len(captions)
    return [[word for word in line.rstrip().split(" ") if word and word not in PUNCTUATION] for line in said]
