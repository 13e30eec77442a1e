"""The scores against what coco-caption and nlg-eval published, and by hand where a case is small."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.score.metrics import bleu, cider_d, rouge_l, score
from tests.conftest import SHARED

ORACLE = SHARED / "metric_oracle"


@pytest.mark.real
def test_coco_captions_published_scores_are_met_to_their_last_digit() -> None:
    folder = ORACLE / "coco_val2014_fakecap"
    said, people = (json.loads((folder / name).read_text()) for name in ("res.json", "gts.json"))
    ours = score([said[i][0].split() for i in said], [[c.split() for c in people[i]] for i in said])
    published = json.loads((folder / "expected_scores.json").read_text())["published"]
    for n in (1, 2, 3, 4):
        assert round(ours[f"BLEU-{n}"], 3) == published[f"Bleu_{n}"]
    assert round(ours["ROUGE-L"], 3) == published["ROUGE_L"]
    assert round(ours["CIDEr-D"], 3) == published["CIDEr"]


@pytest.mark.real
def test_nlg_evals_published_scores_are_met_to_their_last_digit() -> None:
    folder = ORACLE / "nlg_eval_tiny"
    hypothesis, *references = ((folder / name).read_text().splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt"))
    ours = score([h.split() for h in hypothesis], [[r.split() for r in refs] for refs in zip(*references, strict=True)])
    published = json.loads((folder / "expected_scores.json").read_text())["files_hyp_ref1_ref2"]
    for n in (1, 2, 3, 4):
        assert round(ours[f"BLEU-{n}"], 6) == published[f"Bleu_{n}"]
    assert round(ours["ROUGE-L"], 6) == published["ROUGE_L"]
    assert round(ours["CIDEr-D"], 6) == published["CIDEr"]


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, no run of four; as long as the reference is, so no penalty
    scores = bleu(["a b c x d".split()], [["a b c d e".split()]])
    assert scores[:3] == pytest.approx([4 / 5, (4 / 5 * 2 / 4) ** 0.5, (4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3)], abs=1e-6)
    assert 0 < scores[3] < 1e-3


def test_bleu_takes_the_closest_reference_length_and_clips_counts() -> None:
    (one, *_) = bleu(["the the the".split()], [["the cat".split(), "the cat sat on the mat".split()]])
    assert one == pytest.approx(2 / 3, abs=1e-6)  # "the" twice at most; length 3 against 2, so no penalty
    (short, *_) = bleu([["a"]], [["a b c".split()]])
    assert short == pytest.approx(math.exp(1 - 3), rel=1e-6)


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "a c d": precision 3/4, recall 3/5
    expected = (1 + 1.2**2) * 0.75 * 0.6 / (0.6 + 1.2**2 * 0.75)
    assert rouge_l("a x c d".split(), ["a b c d e".split()]) == pytest.approx(expected)
    assert rouge_l([], [["a"]]) == 0
    assert rouge_l(["a"], [[]]) == 0


def test_cider_d_is_ten_for_the_reference_itself_and_zero_without_a_common_word() -> None:
    people = [["a red star".split() * 2], ["two blue dogs run home".split()]]
    assert cider_d(["a red star".split() * 2, "nothing of it here now".split()], people) == pytest.approx([10, 0])


def test_cider_d_of_one_picture_is_zero_for_every_word_is_in_every_picture() -> None:
    assert cider_d([["a"]], [[["a"]]]) == [0]


def test_words_that_every_picture_has_weigh_nothing() -> None:
    people = [["a dog here now".split()], ["a cat here now".split()]]
    only_common, right = cider_d(["a here now".split(), "a cat here now".split()], people)
    assert only_common == 0
    assert right == pytest.approx(10)


def test_an_empty_caption_scores_zero_and_breaks_nothing() -> None:
    scores = score([[], ["a", "b"]], [[["a"]], [["c"]]])
    assert scores["CIDEr-D"] == 0
    assert scores["ROUGE-L"] == 0


@pytest.mark.parametrize("corpus", [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_a_corpus_that_can_not_be_scored_is_refused(corpus: tuple) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        score(*corpus)
