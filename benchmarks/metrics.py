"""Scoring 5,000 pictures of 5 references each from files, beside pycocoevalcap with its Java tokenizer.

Both are whole processes, as people run them: Python starts, reads two JSON files, tokenizes, and computes BLEU-1..4,
ROUGE-L and CIDEr-D; pycocoevalcap starts Java twice. The captions are made up of English words, as common as in
English, and the scores of both must be the same. Needs Java and `pip install --no-deps pycocoevalcap==1.2`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import wordninja

from benchmarks import Figure, UnavailableError, seconds
from benchmarks.overhead import ROOT

PICTURES, EACH = 5_000, 5
RUNS = 7
_QUIET: dict[str, Any] = {
    "cwd": ROOT,
    "capture_output": True,
    "text": True,
    "check": True,
    "env": {**os.environ, "OMP_NUM_THREADS": "1"},
}
OURS = """
import json, sys
from pipeline.evaluation.metrics.scoring import statistics
from pipeline.evaluation.ptb.tokens import ptb_tokenize
said, people = (json.load(open(name)) for name in sys.argv[1:])
found = statistics([ptb_tokenize(c) for c in said], [[ptb_tokenize(c) for c in several] for several in people]).scores()
print(json.dumps([found[name] for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")]))
"""
THEIRS = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
said, people = (json.load(open(name)) for name in sys.argv[1:])
said = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(said)})
people = PTBTokenizer().tokenize({i: [{"caption": c} for c in several] for i, several in enumerate(people)})
bleu, _ = Bleu(4).compute_score(people, said, verbose=0)
print(json.dumps([*bleu, float(Rouge().compute_score(people, said)[0]), float(Cider().compute_score(people, said)[0])]))
"""


def captions() -> tuple[list[str], list[list[str]]]:
    """A candidate and the references of each picture; a candidate is a reference in which other words stand."""
    rng = random.Random(0)
    file = Path(wordninja.__file__).with_suffix("") / "wordninja_words.txt.gz"
    listed = gzip.decompress(file.read_bytes()).decode().split()
    # Of one letter none: whether "x." keeps its full stop depends, to pycocoevalcap, on the next picture's caption.
    words = [word for word in listed if len(word) > 1][:10_000]
    common = list(accumulate(1 / (rank + 5) for rank in range(len(words))))

    def sentence() -> list[str]:
        return rng.choices(words, cum_weights=common, k=max(4, round(rng.gauss(10.5, 2.4))))

    def written(chosen: list[str]) -> str:
        return " ".join(chosen).capitalize() + rng.choice((".", ".", " .", ""))

    people = [[sentence() for _ in range(EACH)] for _ in range(PICTURES)]
    said = [[rng.choice((word, word, rng.choice(words))) for word in several[0]] for several in people]
    return [written(one) for one in said], [[written(one) for one in several] for several in people]


def figures() -> list[Figure]:
    """How much longer pycocoevalcap takes, and the memory of ours."""
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        raise UnavailableError("needs Java and `pip install --no-deps pycocoevalcap==1.2`")
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / name for name in ("said.json", "people.json")]
        for file, content in zip(files, captions(), strict=True):
            file.write_text(json.dumps(content))
        ours, theirs = _command(OURS, files), _command(THEIRS, files)
        found, expected = (json.loads(subprocess.run(c, **_QUIET).stdout) for c in (ours, theirs))
        assert all(abs(a - b) < 1e-9 for a, b in zip(found, expected, strict=True)), (found, expected)
        times = [tuple(seconds(lambda c=c: subprocess.run(c, **_QUIET)) for c in (theirs, ours)) for _ in range(RUNS)]
        memory = _memory(files)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    what = f"{PICTURES:,} pictures of {EACH} references tokenized and scored (BLEU, ROUGE-L, CIDEr-D)"
    return [
        Figure(
            figure=what,
            value=round(a / b, 3),
            unit="x",
            goal=5,
            better="higher",
            runs=RUNS,
            a=f"pycocoevalcap with its Java tokenizer: {a:.2f} s",
            b=f"ours: {b:.2f} s",
        ),
        Figure(
            figure=f"memory of {what}",
            value=round(memory),
            unit="MB",
            goal=500,
            better="lower",
            runs=1,
            a="ours",
            b="",
        ),
    ]


def _command(code: str, files: list[Path]) -> list[str]:
    return [sys.executable, "-c", code, *map(str, files)]


def _memory(files: list[Path]) -> float:
    """Megabytes of our process at its highest, as Linux tells them."""
    code = f"{OURS}\nprint(open('/proc/self/status').read())"
    told = subprocess.run(_command(code, files), **_QUIET).stdout
    return int(told.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
