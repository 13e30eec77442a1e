"""List people's corrections, and delete those of a person."""

from __future__ import annotations

from collections import Counter

from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.serving import feedback
from pipeline.serving.corrections import FOLDER, Corrections
from pipeline.serving.votes import Votes


def list_corrections(params: Params) -> str:
    """Print a line per person, and return the last line to print."""
    found = Corrections().read()
    if not found:
        return f"none in {FOLDER} yet; `image-captioning app` opens the page on which people save them"
    people = sorted({correction.who for correction in found})
    for who in people:
        own = [correction for correction in found if correction.who == who]
        counts = ", ".join(f"{count} {action}" for action, count in sorted(Counter(c.action for c in own).items()))
        print(f"{who}: {counts}; last {max(correction.at for correction in own)}")
    pictures = len({correction.sha256 for correction in found})
    return f"{len(found)} corrections of {pictures} pictures by {len(people)} people in {FOLDER}{_next_step(params)}"


def forget_corrections(params: Params, who: str) -> str:
    """Delete a person's corrections and votes, and return the last line to print; see `Corrections.forget`.

    Raises:
        TemporaryError: MLflow, whose tags count them, can't be reached; nothing was deleted.
    """
    feedback.publish(params, without=who)
    votes = Votes().forget(who)
    try:
        lines, pictures = Corrections().forget(who)
    except DataError:
        if not votes:
            raise
        return f"deleted {votes} votes by {who}, who has no corrections"
    return (
        f"deleted {lines} corrections and {votes} votes by {who}, and {pictures} pictures that only they needed; run"
        f" `dvc add {FOLDER}` and `dvc repro`, and `dvc gc -w` to delete them from DVC's cache too"
    )


def _next_step(params: Params) -> str:
    if FOLDER.name not in params.ingest.sources:
        return f"; to train on them run `dvc add {FOLDER}` and add `{FOLDER.name}` to ingest.sources in params.yaml"
    return f"; to train on new ones run `dvc add {FOLDER}` and `dvc repro`"
