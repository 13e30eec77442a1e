from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.config.sections.promote import Promote
from pipeline.evaluation.metrics.registry import METRICS, Metric
from pipeline.evaluation.metrics.scoring import Statistics, statistics
from pipeline.tracking.comparison import BEFORE_FINETUNING, NAIVE_ANSWERS, Comparison
from pipeline.tracking.gate import Gain, check_metric, gain, verdict
from tests.conftest import ROOT

RULE = Promote(
    metric="CIDEr-D",
    least_gain=0.1,
    confidence=0.95,
    least_pictures=30,
    least_distinct=0.2,
    approval="none",
    seed=0,
)
SURE = Gain(value=0.5, low=0.2, high=0.8, differing=100)
UNSURE = Gain(value=0.5, low=0.05, high=0.95, differing=100)
WORSE = Gain(value=-0.5, low=-0.8, high=-0.1, differing=100)
FEW = Gain(value=0.5, low=0.2, high=0.8, differing=29)


@pytest.mark.parametrize(
    ("found", "distinct", "promoted", "reasons"),
    [
        (SURE, 0.5, True, ["surely more"]),
        (SURE, 0.2, True, ["surely more"]),
        (SURE, 0.1, False, ["least_distinct", "surely more"]),
        (UNSURE, 0.5, False, ["not surely more"]),
        (UNSURE, 0.1, False, ["least_distinct", "not surely more"]),
        (FEW, 0.5, False, ["least_pictures", "surely more"]),
        (FEW, 0.1, False, ["least_distinct", "least_pictures", "surely more"]),
        (Gain(0.1, 0.1, 0.1, 100), 0.5, False, ["not surely more"]),
        (WORSE, 0.5, False, [": worse"]),
        (WORSE, 0.1, False, ["least_distinct", ": worse"]),
        (None, 0.5, True, ["no champion yet"]),
        (None, 0.1, False, ["least_distinct"]),
    ],
)
def test_every_reason_alone_keeps_the_champion(
    found: Gain | None, distinct: float, promoted: bool, reasons: list[str]
) -> None:
    said = verdict(RULE, distinct, 120, found)
    assert said.promoted is promoted
    assert len(said.reasons) == len(reasons)
    for words, expected in zip(said.reasons, reasons, strict=True):
        assert expected in words
        assert ("not surely" in words) == ("not surely" in expected)


@pytest.mark.parametrize(
    ("found", "distinct", "borderline"),
    [
        (UNSURE, 0.5, True),
        (FEW, 0.5, True),
        (UNSURE, 0.1, False),
        (SURE, 0.5, False),
        (WORSE, 0.5, False),
        (Gain(0.0, 0.0, 0.0, 0), 0.5, False),
        (None, 0.5, False),
    ],
)
def test_only_a_gain_that_is_in_doubt_is_borderline(found: Gain | None, distinct: float, borderline: bool) -> None:
    assert verdict(RULE, distinct, 120, found).borderline is borderline
    worse = Comparison(NAIVE_ANSWERS, "CIDEr-D", -0.5, -0.8, -0.1)
    assert not verdict(RULE, distinct, 120, found, [worse]).borderline


@pytest.mark.parametrize("found", [None, SURE])
@pytest.mark.parametrize("over", [BEFORE_FINETUNING, NAIVE_ANSWERS])
def test_a_model_that_is_worse_than_what_it_has_to_beat_is_refused(found: Gain | None, over: str) -> None:
    worse = Comparison(over, "CIDEr-D", -0.5, -0.8, -0.1)
    said = verdict(RULE, 0.5, 120, found, [worse])
    assert not said.promoted
    assert said.reasons[0] == f"worse than {over} (-0.500 CIDEr-D, 95 % interval -0.800 to -0.100)"
    unclear = Comparison(over, "CIDEr-D", -0.1, -0.4, 0.2)
    assert verdict(RULE, 0.5, 120, found, [unclear]) == verdict(RULE, 0.5, 120, found)


def counted(cider_d: np.ndarray) -> Statistics:
    """A corpus of which only CIDEr-D matters."""
    count = len(cider_d)
    nothing = np.zeros(count)
    counts = np.ones((count, 10), dtype=np.int64)
    return Statistics({"BLEU": counts, "ROUGE-L": nothing, "CIDEr-D": cider_d, "CIDEr": nothing})


def gained(challenger: np.ndarray, champion: np.ndarray, **changes: object) -> Gain:
    return gain(counted(challenger), counted(champion), RULE.model_copy(update=changes))


def test_the_gain_is_the_mean_difference_with_an_interval_around_it() -> None:
    rng = np.random.default_rng(1)
    champion = rng.exponential(1, 400)
    challenger = champion + rng.normal(0.5, 1, 400)
    found = gained(challenger, champion)
    assert found.value == pytest.approx(0.5, abs=0.15)
    # Of normal differences the interval is 1.96 standard errors to each side, and 1.645 with less confidence.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 1 / 20, rel=0.1)
    narrower = gained(challenger, champion, confidence=0.9)
    assert narrower.high - narrower.low == pytest.approx(2 * 1.645 * 1 / 20, rel=0.1)
    assert found.differing == 400
    assert gained(champion[::-1], champion) == gained(champion[::-1], champion)
    assert gained(champion, champion) == Gain(0.0, 0.0, 0.0, 0)


def exchangeable(rng: np.random.Generator, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models as good as each other: what each picture's two captions are worth is drawn alike."""
    return rng.exponential(2, pictures), rng.exponential(2, pictures)


def nearly_the_same(rng: np.random.Generator, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that say the same of most pictures, and are as good on the few others."""
    same, (first, second) = rng.exponential(2, pictures), exchangeable(rng, pictures)
    differs = rng.random(pictures) < 0.1
    return np.where(differs, first, same), np.where(differs, second, same)


def skewed(rng: np.random.Generator, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models of the same mean, of which one has a few great captions where the other has many fair ones."""
    great = np.where(rng.random(pictures) < 0.2, rng.exponential(5, pictures), 0.0)
    return great, rng.exponential(1, pictures)


@pytest.mark.parametrize("draw", [exchangeable, nearly_the_same, skewed])
@pytest.mark.parametrize("pictures", [60, *(pytest.param(n, marks=pytest.mark.slow) for n in (150, 300))])
def test_a_challenger_that_is_no_better_is_promoted_in_at_most_five_of_a_hundred_cases(
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]],
    pictures: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the rule as it is shipped; fewer resamples than it takes, for time, which makes the interval noisier."""
    monkeypatch.setattr("pipeline.tracking.gate.RESAMPLES", 1000)
    rule = params.load(ROOT / "params.yaml").promote
    rng = np.random.default_rng(5)
    promoted = 0
    for case in range(1000):
        challenger, champion = draw(rng, pictures)
        found = gain(counted(challenger), counted(champion), rule.model_copy(update={"seed": case}))
        promoted += verdict(rule, 1.0, pictures, found).promoted
    assert promoted <= 50


def test_a_challenger_that_is_much_better_is_promoted_nearly_always() -> None:
    rule = params.load(ROOT / "params.yaml").promote
    rng = np.random.default_rng(5)
    promoted = 0
    for case in range(50):
        challenger, champion = exchangeable(rng, 150)
        found = gain(counted(challenger + 1), counted(champion), rule.model_copy(update={"seed": case}))
        promoted += verdict(rule, 1.0, 150, found).promoted
    assert promoted >= 45


def test_the_gate_takes_its_metrics_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULE.model_copy(update={"metric": "Length"})
    with pytest.raises(ConfigError, match=r"promote\.metric: found 'Length'; choose one of BLEU-1, .*, CIDEr-D, CIDEr"):
        check_metric(rule)
    monkeypatch.setitem(METRICS, "Length", Metric(lambda corpus: corpus.candidate_lengths))
    check_metric(rule)
    people = [["a b c d".split()]] * 40
    longer, shorter = (statistics([[word] * count] * 40, people) for word, count in (("a", 3), ("a", 1)))
    found = gain(longer, shorter, rule)
    assert (found.value, found.low, found.high, found.differing) == (2, 2, 2, 40)
