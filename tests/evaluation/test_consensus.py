from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.evaluation import baselines
from pipeline.evaluation.consensus import Utility, ranked
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.synthetic.scenes import random_scene
from pipeline.synthetic.words import instagram

RNG = random.Random(5)
TRAINING = [instagram(random_scene(RNG, two=0.5), RNG) for _ in range(120)]
CANDIDATES = [
    "a red ball on a blue rug",
    "",
    "a a a a a a",
    "unseen words here",
    "1 1/2 cups",
    *TRAINING[3],
    "A red ball!",
]

NEW = [text for text in CANDIDATES if text not in TRAINING[3]]  # no copies


def words(captions: list[str]) -> list[list[str]]:
    return [ptb_tokenize(caption) for caption in captions]


def expected(candidate: str, references: list[str]) -> float:
    (score,) = cider_d(words([candidate]), [words(references)], idf_from=[words(several) for several in TRAINING])
    return score


def test_the_utility_is_cider_d_with_the_document_frequencies_of_the_training_captions() -> None:
    references = [*TRAINING[3], *TRAINING[8], "unseen words here too", "a a a ball", "1 1/2 cups of tea"]
    found = Utility(TRAINING).between(CANDIDATES, references)
    assert found.shape == (len(CANDIDATES), len(references))
    for row, candidate in zip(found, CANDIDATES, strict=True):
        for score, reference in zip(row, references, strict=True):
            assert score == pytest.approx(expected(candidate, [reference]), abs=1e-9)
    assert found.max() > 1


def test_minimum_bayes_risk_takes_the_caption_that_agrees_best_with_the_other_candidates() -> None:
    candidates = ["a blue cup", "a red ball", "a red ball on a rug", "a red ball", "a dog"]
    best, *_ = ranked(Utility(TRAINING), "mbr", candidates, [])
    means = dict.fromkeys(candidates, 0.0)
    for i, text in enumerate(candidates):
        means[text] = expected(text, candidates[:i] + candidates[i + 1 :])
    assert best == max(means, key=means.__getitem__)


def test_consensus_takes_the_caption_that_agrees_best_with_the_references() -> None:
    found = ranked(Utility(TRAINING), "consensus", NEW, TRAINING[8])
    assert found == sorted(NEW, key=lambda text: -round(expected(text, TRAINING[8]), 9))


def test_references_count_by_their_weights() -> None:
    references, weights = ["a red ball on a rug", "unseen words", "a blue cup"], np.array([0.2, 0.7, 0.1])
    found = ranked(Utility(TRAINING), "consensus", NEW, references, weights)

    def score(text: str) -> float:
        return sum(w * expected(text, [one]) for w, one in zip(weights, references, strict=True))

    assert found == sorted(NEW, key=lambda text: -round(score(text), 9))
    assert found[0] == "unseen words here"


@pytest.mark.parametrize("method", ["mbr", "consensus", "both"])
def test_a_copy_of_a_training_caption_is_chosen_only_if_it_is_the_likeliest(method: str) -> None:
    copy, other = TRAINING[8][0], "a red ball on a blue rug"
    copied = f" {copy.upper()} ."
    assert ptb_tokenize(copied) == ptb_tokenize(copy)
    utility = Utility(TRAINING)
    assert ranked(utility, method, [other, copy, copied], TRAINING[8])[0] == other
    assert ranked(utility, method, [copy, other], TRAINING[8])[0] == copy
    assert set(ranked(utility, method, [other, copy, copied], TRAINING[8])) == {other, copy, copied}, "none is lost"


def test_both_adds_the_two_after_scaling_each_to_1() -> None:
    utility, references, texts = Utility(TRAINING), TRAINING[8], NEW
    parts = []
    for method in ("mbr", "consensus"):
        others = [[*texts[:i], *texts[i + 1 :]] if method == "mbr" else references for i in range(len(texts))]
        scores = np.array([expected(text, against) for text, against in zip(texts, others, strict=True)])
        parts.append(scores / scores.max())
    order = np.argsort(-sum(parts).round(9), kind="stable")  # type: ignore[union-attr]
    assert ranked(utility, "both", texts, references) == [texts[i] for i in order]


@pytest.mark.parametrize("method", ["mbr", "consensus", "both"])
@pytest.mark.parametrize("candidates", [["x"], ["", ""], ["x", "x", "x"], ["zz", "yy"]])
def test_candidates_that_nothing_agrees_with_stay_in_order(method: str, candidates: list[str]) -> None:
    for utility in (Utility(TRAINING), Utility([["one picture"]]), Utility([["狗在跑"], ["猫"]])):
        assert ranked(utility, method, candidates, []) == list(dict.fromkeys(candidates))


def test_the_consensus_of_the_nearest_pictures_leaves_out_the_captions_of_the_same_picture() -> None:
    captions = [["a red ball", "a red ball", "a red ball"], ["a blue cup on a rug", "the cup"], ["a blue cup"]]
    utility = Utility([*captions, *TRAINING])
    assert baselines.consensus(utility, captions, [[0, 1, 2], [0]]) == ["a blue cup", "a red ball"]
