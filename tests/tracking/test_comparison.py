from __future__ import annotations

from typing import Any

import pytest

from pipeline.tracking.comparison import comparisons, verdict

BETTER, UNCLEAR, WORSE = [0.5, 0.2, 0.8], [0.1, -0.2, 0.4], [-0.5, -0.8, -0.1]


def evaluation(**others: tuple[float, list[float]]) -> dict[str, Any]:
    """The content of evaluate.json with the score of each other system, and the model's gain over it."""
    systems = {
        name: {"CIDEr-D": score, "model_is_above_by": {"CIDEr-D": gain}} for name, (score, gain) in others.items()
    }
    return {"model": {"CIDEr-D": 1.0}, **systems, "pictures": 120, "tokenizer": "PTB"}


@pytest.mark.parametrize(
    ("gain", "expected"), [(BETTER, "better than"), (UNCLEAR, "not clearly better than"), (WORSE, "worse than")]
)
def test_the_paired_interval_decides_what_is_said(gain: list[float], expected: str) -> None:
    (found,) = comparisons(evaluation(before_finetuning=(0.5, gain)), "CIDEr-D")
    assert found.verdict == f"{expected} before fine-tuning"
    assert found.is_worse is (gain is WORSE)
    assert str(found).startswith(f"{found.verdict} ({gain[0]:+.3f} CIDEr-D, 95 % interval {gain[1]:+.3f} to ")


def test_an_interval_that_touches_zero_is_neither_better_nor_worse() -> None:
    for gain in ([0.1, 0.0, 0.2], [-0.1, -0.2, 0.0], [0.0, 0.0, 0.0]):
        (found,) = comparisons(evaluation(most_frequent=(0.5, gain)), "CIDEr-D")
        assert found.verdict == "not clearly better than the naive answers"


def test_the_best_naive_answer_counts() -> None:
    found = comparisons(
        evaluation(before_finetuning=(0.1, BETTER), nearest_picture=(1.5, WORSE), most_frequent=(0.5, BETTER)),
        "CIDEr-D",
    )
    assert verdict(found) == "better than before fine-tuning, worse than the naive answers"


def test_a_report_without_gains_in_the_metric_gives_no_verdict() -> None:
    assert comparisons({}, "CIDEr-D") == []
    assert comparisons(evaluation(most_frequent=(0.5, WORSE)), "BLEU-4") == []
    assert comparisons({"model": {"CIDEr-D": 1.0}, "most_frequent": {"CIDEr-D": 2.0}}, "CIDEr-D") == []
    assert verdict([]) == ""
