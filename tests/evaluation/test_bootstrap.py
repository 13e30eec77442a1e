from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import FEW, differences, intervals, warning
from pipeline.evaluation.metrics.registry import score_names
from pipeline.evaluation.metrics.scoring import Statistics, corpus_scores, statistics

WORDS = "a the red blue big small dog cat boat sits runs on by sea hill".split()


def corpus(pictures: int, seed: int, right: float = 0.5) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Return captions and references. A word is right with probability `right`, which changes no reference."""
    rng, mistakes = random.Random(0), random.Random(seed)
    people = [[rng.choices(WORDS, k=rng.randint(4, 9)) for _ in range(2)] for _ in range(pictures)]
    said = [[w if mistakes.random() < right else mistakes.choice(WORDS) for w in several[0]] for several in people]
    return said, people


def counted(pictures: int, seed: int, right: float = 0.5) -> Statistics:
    return statistics(*corpus(pictures, seed, right))


def test_the_interval_contains_the_score_and_narrows_with_more_pictures() -> None:
    few, many = counted(50, 1), counted(800, 1)
    for name in score_names():
        (low, high), (near_low, near_high) = intervals(few)[name], intervals(many)[name]
        assert low < few.scores()[name] < high
        assert near_low < many.scores()[name] < near_high
        assert near_high - near_low < (high - low) / 2


def test_bleu_of_a_resample_is_computed_from_its_pictures() -> None:
    said, people = corpus(12, 3)
    times = np.random.default_rng(5).multinomial(12, [1 / 12] * 12, size=4)
    found = statistics(said, people).resampled(times)
    for row, drawn in zip(found, times, strict=True):
        chosen = [i for i, count in enumerate(drawn) for _ in range(count)]
        again = corpus_scores([said[i] for i in chosen], [people[i] for i in chosen])
        assert row[:5] == pytest.approx([again[name] for name in score_names()[:5]])


def test_the_interval_contains_the_true_mean_in_about_95_of_100_samples() -> None:
    """Draw 200 samples of 60 pictures from a larger corpus, whose mean is the true one."""
    whole = counted(6000, 2)
    truth, rng = whole.scores()["ROUGE-L"], np.random.default_rng(0)
    held = 0
    for number in range(200):
        chosen = rng.choice(6000, 60)
        low, high = intervals(whole.part(chosen), seed=number, resamples=300)["ROUGE-L"]
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_different_one() -> None:
    one = counted(40, 1)
    assert intervals(one, seed=1) == intervals(one, seed=1) != intervals(one, seed=2)


def test_the_chunk_size_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    one = counted(40, 1)
    whole = intervals(one)
    monkeypatch.setattr("pipeline.evaluation.bootstrap._AT_ONCE", 300)
    again = intervals(one)
    assert all(again[name] == pytest.approx(whole[name]) for name in score_names())


def test_paired_resamples_detect_a_better_system_although_unpaired_intervals_overlap() -> None:
    worse, better = counted(150, 1, 0.50), counted(150, 1, 0.54)
    found = differences(worse, better)["BLEU-1"]
    assert found.value == pytest.approx(better.scores()["BLEU-1"] - worse.scores()["BLEU-1"])
    assert 0 < found.low < found.value < found.high
    assert found.better > 0.99
    assert intervals(worse)["BLEU-1"][1] > intervals(better)["BLEU-1"][0]
    back = differences(better, worse)["BLEU-1"]
    assert (back.low, back.high, back.better) == pytest.approx((-found.high, -found.low, 1 - found.better))


def test_a_system_is_not_better_than_itself() -> None:
    one = counted(30, 1)
    for difference in differences(one, one).values():
        assert (difference.value, difference.low, difference.high, difference.better) == (0, 0, 0, 0.5)


def test_systems_with_different_numbers_of_pictures_are_rejected() -> None:
    with pytest.raises(ValueError, match="a has 30 pictures and b 31"):
        differences(counted(30, 1), counted(31, 1))


def test_one_picture_has_an_interval_without_width() -> None:
    low, high = intervals(counted(1, 1))["ROUGE-L"]
    assert low == high


@pytest.mark.parametrize(("pictures", "told"), [(1, "1 picture is too few"), (FEW - 1, "99 pictures are too few")])
def test_too_few_pictures_give_a_warning(pictures: int, told: str) -> None:
    assert told in (warning(pictures) or "")


def test_enough_pictures_give_no_warning() -> None:
    assert warning(FEW) is None
