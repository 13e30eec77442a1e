"""The metrics of test and data that a run shows: those that a person compares between runs.

MLflow's page of a run lists metrics in the order of their first values (with a SQLite store). The test metrics come
last in a training, so their places are reserved before it logs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tracking.comparison import BEFORE, MODEL, RESTYLED

PREFIX = "test/"
_HEADLINE = "CIDEr-D"  # also shown of the other systems
_SCORES = (_HEADLINE, "CIDEr", "BLEU-4", "BLEU-3", "BLEU-2", "BLEU-1", "ROUGE-L")
_OTHERS = (BEFORE, RESTYLED, "nearest_consensus", "nearest_picture", "most_frequent")
_WORDING = ("distinct_captions", "copied")


def expected(from_scratch: bool, alone: bool = False) -> list[str]:
    """Return the names to reserve places for, in the order to show.

    Args:
        from_scratch: whether the training starts from random weights, so that there is no checkpoint before it.
        alone: whether the run shows the scores of its own model only.
    """
    others = [other for other in _OTHERS if not alone and not (from_scratch and other in (BEFORE, RESTYLED))]
    return [
        f"{PREFIX}{_HEADLINE}",
        *(f"{PREFIX}{_HEADLINE}/{other}" for other in others),
        *(f"{PREFIX}{name}" for name in (*_SCORES[1:], *_WORDING)),
    ]


def of_evaluation(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a run from the content of evaluate.json.

    They are `test/SCORE` of the model for every score, and `test/CIDEr-D/SYSTEM` of the other systems.
    """
    values = of_system(evaluation[MODEL])
    for system, scores in evaluation.items():
        if isinstance(scores, Mapping) and system != MODEL:
            values[f"{PREFIX}{_HEADLINE}/{system}"] = scores[_HEADLINE]
    places = {name: place for place, name in enumerate(expected(from_scratch=False))}
    return {name: values[name] for name in sorted(values, key=lambda name: places.get(name, len(places)))}


def of_system(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of one system of evaluate.json: its scores, and its cost if it was measured."""
    cost = {f"cost/{name}": value for name, value in scores.get("cost", {}).items() if value is not None}
    return {f"{PREFIX}{name}": scores[name] for name in (*scores["intervals_95"], *_WORDING)} | cost


def of_build(build: Mapping[str, Any]) -> dict[str, float]:
    """Return what the tokenizer loses of the captions, as shares, from the content of build.json.

    There are none if there was no tokenizer to count with.
    """
    unknown, cut = build["unknown_tokens"], build["cut_captions"]
    if unknown is None or cut is None:
        return {}
    return {
        "data/unknown_tokens": unknown["share"],
        "data/unknown_words": unknown["share_of_words"],
        "data/cut_captions": cut["share"],
        "data/cut_tokens": cut["share_of_tokens"],
    }
