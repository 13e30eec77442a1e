from __future__ import annotations

from typing import Any

from pipeline.evaluation.metrics.registry import score_names
from pipeline.tracking import run_metrics


def evaluation(*systems: str, **more: float) -> dict[str, Any]:
    """The content of evaluate.json, in the order of today's scores."""
    scores = dict.fromkeys(score_names(), 0.5) | more
    figures = {"distinct-1": 0.1, "distinct_captions": 0.2, "words": 7.0, "emoji_recall": None, "copied": 0.0}
    system = {**scores, **figures, "intervals_95": {name: [0.4, 0.6] for name in scores}}
    return {**{name: dict(system) for name in ("model", *systems)}, "pictures": 120, "test_sha256": "x"}


def test_a_run_shows_the_scores_of_the_model_and_one_of_each_other_system() -> None:
    shown = run_metrics.of_evaluation(
        evaluation("before_finetuning", "restyled", "nearest_consensus", "nearest_picture", "most_frequent")
    )
    places = run_metrics.expected(from_scratch=False)
    assert list(shown)[: len(places)] == places
    assert {name for name in shown if name.count("/") == 1} == {
        *(f"test/{name}" for name in score_names()),
        "test/distinct_captions",
        "test/copied",
    }
    assert len(shown) == len(score_names()) + 7
    assert list(shown)[:2] == ["test/CIDEr-D", "test/CIDEr-D/before_finetuning"]


def test_a_new_score_is_shown_too() -> None:
    assert run_metrics.of_evaluation(evaluation("most_frequent", New=0.75))["test/New"] == 0.75


def test_no_place_is_reserved_for_what_a_training_from_scratch_does_not_measure() -> None:
    shown = run_metrics.of_evaluation(evaluation("nearest_consensus", "nearest_picture", "most_frequent"))
    places = run_metrics.expected(from_scratch=True)
    assert list(shown)[: len(places)] == places
