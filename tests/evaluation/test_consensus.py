from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.evaluation import baselines
from pipeline.evaluation.consensus import Candidates, Utility, ranked
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


def among(
    texts: list[str],
    references: list[str],
    weights: Sequence[float] | None = None,
    log_probabilities: Sequence[float] | None = None,
) -> Candidates:
    """All references count the same, and all candidates are as likely, unless said otherwise."""
    return Candidates(
        texts,
        np.zeros(len(texts)) if log_probabilities is None else np.array(log_probabilities),
        references,
        np.full(len(references), 1 / max(1, len(references))) if weights is None else np.array(weights),
    )


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
    best, *_ = ranked(Utility(TRAINING), "mbr", among(candidates, []))
    means = dict.fromkeys(candidates, 0.0)
    for i, text in enumerate(candidates):
        means[text] = expected(text, candidates[:i] + candidates[i + 1 :])
    assert best == max(means, key=means.__getitem__)


def test_consensus_takes_the_caption_that_agrees_best_with_the_references() -> None:
    found = ranked(Utility(TRAINING), "consensus", among(NEW, TRAINING[8]))
    assert found == sorted(NEW, key=lambda text: -round(expected(text, TRAINING[8]), 9))


def test_references_count_by_their_weights() -> None:
    references, weights = ["a red ball on a rug", "unseen words", "a blue cup"], [0.2, 0.7, 0.1]
    found = ranked(Utility(TRAINING), "consensus", among(NEW, references, weights))

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
    assert ranked(utility, method, among([other, copy, copied], TRAINING[8]))[0] == other
    assert ranked(utility, method, among([copy, other], TRAINING[8]))[0] == copy
    every = ranked(utility, method, among([other, copy, copied], TRAINING[8]))
    assert set(every) == {other, copy, copied}, "none is lost"


def test_both_adds_the_two_after_scaling_each_to_1() -> None:
    utility, references, texts = Utility(TRAINING), TRAINING[8], NEW
    parts = []
    for method in ("mbr", "consensus"):
        others = [[*texts[:i], *texts[i + 1 :]] if method == "mbr" else references for i in range(len(texts))]
        scores = np.array([expected(text, against) for text, against in zip(texts, others, strict=True)])
        parts.append(scores / scores.max())
    order = np.argsort(-sum(parts).round(9), kind="stable")  # type: ignore[union-attr]
    assert ranked(utility, "both", among(texts, references)) == [texts[i] for i in order]


@pytest.mark.parametrize("method", ["mbr", "consensus", "both"])
@pytest.mark.parametrize("candidates", [["x"], ["", ""], ["x", "x", "x"], ["zz", "yy"]])
def test_candidates_that_nothing_agrees_with_stay_in_order(method: str, candidates: list[str]) -> None:
    for utility in (Utility(TRAINING), Utility([["one picture"]]), Utility([["狗在跑"], ["猫"]])):
        assert ranked(utility, method, among(candidates, [])) == list(dict.fromkeys(candidates))


@pytest.mark.parametrize("method", ["mbr", "consensus", "both"])
def test_likelihood_times_the_log_probability_is_added_to_the_scaled_agreement(method: str) -> None:
    utility, references = Utility(TRAINING), TRAINING[8]
    likely = [-0.1 * (i + 1) ** 1.5 for i in range(len(NEW))]
    agreement = np.zeros(len(NEW))
    for part in ("mbr", "consensus") if method == "both" else (method,):
        others = [[*NEW[:i], *NEW[i + 1 :]] if part == "mbr" else references for i in range(len(NEW))]
        scores = np.array([expected(text, against) for text, against in zip(NEW, others, strict=True)])
        agreement += scores / scores.max()
    for likelihood in (0.0, 0.5, 3.0):
        order = np.argsort(-(agreement + likelihood * np.array(likely)).round(9), kind="stable")
        found = ranked(utility, method, among(NEW, references, None, likely), likelihood)
        assert found == [NEW[i] for i in order]
    assert ranked(utility, method, among(NEW, references, None, likely), 100.0) == NEW, "by likelihood alone"


def test_a_candidate_that_occurs_again_has_the_log_probability_of_its_first() -> None:
    candidates = among(["x", "y", "x"], [], None, [-3.0, -2.0, -1.0])
    assert ranked(Utility(TRAINING), "consensus", candidates, 1.0) == ["y", "x"]


def test_the_consensus_of_the_nearest_pictures_leaves_out_the_captions_of_the_same_picture() -> None:
    captions = [["a red ball", "a red ball", "a red ball"], ["a blue cup on a rug", "the cup"], ["a blue cup"]]
    utility = Utility([*captions, *TRAINING])
    assert baselines.consensus(utility, captions, [[0, 1, 2], [0]]) == ["a blue cup", "a red ball"]
