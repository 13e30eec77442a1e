"""METEOR and SPICE, computed by `pycocoevalcap` if it and Java are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.metrics.corpus import Words

NAMES = ("METEOR", "SPICE")
_PACKAGE = "pycocoevalcap"
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def scores(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the scores, and for each score that was not computed the reason.

    Nothing is downloaded: SPICE is left out until its language models are installed.
    """
    reasons = {name: reason for name in NAMES if (reason := _missing(name))}
    computed = {}
    captions = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    people = {i: [" ".join(words) for words in several] for i, several in enumerate(references)}
    for name in NAMES:
        if name in reasons:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                computed[name] = _computed(name, people, captions)
        except (OSError, ValueError, AssertionError, subprocess.SubprocessError) as error:
            reasons[name] = f"{_PACKAGE} failed: {' '.join(str(error).split()) or type(error).__name__}"
    return computed, reasons


def _missing(name: str) -> str | None:
    """Return what to install first, or None if the score can be computed."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return "needs pycocoevalcap; install it with `pip install pycocoevalcap==1.2`"
    if shutil.which("java") is None:
        return "needs Java; install a Java runtime, 8 or newer"
    library = Path(found.submodule_search_locations[0]) / "spice" / "lib"
    if name == "SPICE" and not all((library / model).is_file() for model in _SPICE_MODELS):
        return (
            "needs language models of 384 MB; fetch them once with"
            " `python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'`"
        )
    return None


def _computed(name: str, people: dict[int, list[str]], captions: dict[int, list[str]]) -> float:
    if name == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor as Scorer
    else:
        from pycocoevalcap.spice.spice import Spice as Scorer
    score, _ = Scorer().compute_score(people, captions)
    return float(score)
