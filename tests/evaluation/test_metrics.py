"""Scores compared with published ones of coco-caption and nlg-eval, with pycocoevalcap, and with values by hand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.metrics.cider import cider, cider_d
from pipeline.evaluation.metrics.registry import score_names
from pipeline.evaluation.metrics.rouge_l import rouge_l
from pipeline.evaluation.metrics.scoring import corpus_scores, statistics
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from tests.conftest import SHARED

ORACLE = SHARED / "metric_oracle"
RECORDED = Path(__file__).with_name("scores.json")


def words(caption: str) -> list[str]:
    return [word for word in caption.split(" ") if word]


def test_scores_of_a_corpus_and_of_each_picture_equal_those_of_pycocoevalcap() -> None:
    recorded = json.loads(RECORDED.read_text())
    candidates = [words(candidate) for candidate, _ in recorded["corpus"]]
    references = [[words(reference) for reference in several] for _, several in recorded["corpus"]]
    found = statistics(candidates, references)
    for name, value in recorded["scores"].items():
        assert found.scores()[name] == pytest.approx(value, abs=1e-9)
        assert found.each()[name] == pytest.approx(np.array(recorded["each"][name]), abs=1e-9)
    assert [*recorded["scores"], "CIDEr"] == list(score_names())


@pytest.mark.java
@pytest.mark.parametrize("seed", range(40))
def test_scores_of_random_corpora_equal_those_of_pycocoevalcap(seed: int) -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("needs pycocoevalcap 1.2 (pip install --no-deps pycocoevalcap==1.2)")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(seed)
    vocabulary, pictures = rng.choice((3, 20, 500)), rng.choice((1, 2, 50))

    def caption(shortest: int = 0) -> list[str]:
        return [f"w{rng.randrange(vocabulary)}" for _ in range(rng.choice((shortest, 1, 3, 5, 12, 40)))]

    candidates = [caption() for _ in range(pictures)]
    references = [[caption(1), *(caption() for _ in range(rng.randint(0, 4)))] for _ in range(pictures)]
    said = {i: [" ".join(candidate)] for i, candidate in enumerate(candidates)}
    people = {i: [" ".join(reference) for reference in several] for i, several in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_each = Bleu(4).compute_score(people, said)
        rouge, rouge_each = Rouge().compute_score(people, said)
        cider_score, cider_each = Cider().compute_score(people, said)
    found = statistics(candidates, references)
    scores, each = found.scores(), found.each()
    theirs = (*zip(bleu, bleu_each, strict=True), (rouge, rouge_each), (cider_score, cider_each))
    for name, (value, values) in zip(score_names()[:-1], theirs, strict=True):
        assert scores[name] == pytest.approx(value, abs=1e-9)
        assert each[name] == pytest.approx(np.array(values), abs=1e-9)


@pytest.mark.real
def test_published_scores_of_coco_caption_are_reproduced_to_the_last_digit() -> None:
    folder = ORACLE / "coco_val2014_fakecap"
    said, people = (json.loads((folder / name).read_text()) for name in ("res.json", "gts.json"))
    ours = corpus_scores([said[i][0].split() for i in said], [[c.split() for c in people[i]] for i in said])
    published = json.loads((folder / "expected_scores.json").read_text())["published"]
    for n in (1, 2, 3, 4):
        assert round(ours[f"BLEU-{n}"], 3) == published[f"Bleu_{n}"]
    assert round(ours["ROUGE-L"], 3) == published["ROUGE_L"]
    assert round(ours["CIDEr-D"], 3) == published["CIDEr"]


@pytest.mark.real
def test_published_scores_of_nlg_eval_are_reproduced_to_the_last_digit() -> None:
    folder = ORACLE / "nlg_eval_tiny"
    hypothesis, *references = ((folder / name).read_text().splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt"))
    ours = corpus_scores(
        [h.split() for h in hypothesis], [[r.split() for r in refs] for refs in zip(*references, strict=True)]
    )
    published = json.loads((folder / "expected_scores.json").read_text())["files_hyp_ref1_ref2"]
    for n in (1, 2, 3, 4):
        assert round(ours[f"BLEU-{n}"], 6) == published[f"Bleu_{n}"]
    assert round(ours["ROUGE-L"], 6) == published["ROUGE_L"]
    assert round(ours["CIDEr-D"], 6) == published["CIDEr"]


def as_printed(value: float, printed: float) -> bool:
    """Return whether a value equals a printed one to its last digit."""
    digits, _, exponent = repr(printed).partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(value - printed) <= unit  # some are cut off where others are rounded


@pytest.mark.real
def test_published_scores_of_single_examples_are_reproduced_to_the_last_digit() -> None:
    published = json.loads((ORACLE / "nlg_eval_tiny" / "expected_scores.json").read_text())["single_examples"]
    assert len(published) >= 2
    for example in published:
        ours = corpus_scores([example["hyp"].split()], [[reference.split() for reference in example["refs"]]])
        for name, theirs in [
            *((f"BLEU-{n}", f"Bleu_{n}") for n in (1, 2, 3, 4)),
            ("ROUGE-L", "ROUGE_L"),
            ("CIDEr-D", "CIDEr"),
        ]:
            if theirs in example:
                assert as_printed(ours[name], example[theirs]), (example["hyp"], name)


@pytest.mark.real
def test_the_published_example_of_another_package_is_reproduced_from_raw_captions() -> None:
    example = json.loads((ORACLE / "nlg_eval_tiny" / "expected_scores.json").read_text())["aac_metrics_README"]
    said = [ptb_tokenize(caption) for caption in example["candidates"]]
    people = [[ptb_tokenize(caption) for caption in several] for several in example["mult_references"]]
    found = statistics(said, people)
    assert round(found.scores()["BLEU-1"], 4) == example["bleu_1"]
    assert round(found.scores()["CIDEr-D"], 4) == example["cider_d"]
    assert [round(value, 4) for value in found.each()["CIDEr-D"]] == example["cider_d_per_item"]


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, no run of four; as long as the reference is, so no penalty
    scores = corpus_scores(["a b c x d".split()], [["a b c d e".split()]])
    expected = [4 / 5, (4 / 5 * 2 / 4) ** 0.5, (4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3)]
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3)] == pytest.approx(expected, abs=1e-6)
    assert 0 < scores["BLEU-4"] < 1e-3


def test_bleu_takes_the_closest_reference_length_and_clips_counts() -> None:
    one = corpus_scores(["the the the".split()], [["the cat".split(), "the cat sat on the mat".split()]])["BLEU-1"]
    assert one == pytest.approx(2 / 3, abs=1e-6)  # "the" twice at most; length 3 against 2, so no penalty
    short = corpus_scores([["a"]], [["a b c".split()]])["BLEU-1"]
    assert short == pytest.approx(math.exp(1 - 3), rel=1e-6)
    between = corpus_scores(["a b c".split()], [["a b c d".split(), "a b".split()]])["BLEU-1"]
    assert between == pytest.approx(1, rel=1e-6)  # of two that are as near the shorter


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "a c d": precision 3/4, recall 3/5
    expected = (1 + 1.2**2) * 0.75 * 0.6 / (0.6 + 1.2**2 * 0.75)
    assert rouge_l("a x c d".split(), ["a b c d e".split()]) == pytest.approx(expected)
    # precision and recall are each the best of the references
    best = (1 + 1.2**2) * 1 * 0.5 / (0.5 + 1.2**2 * 1)
    assert rouge_l(["a", "b"], ["a b c d".split(), "b x y z".split()]) == pytest.approx(best)
    assert rouge_l([], [["a"]]) == 0
    assert rouge_l([], [[]]) == 1  # to coco-caption both are the empty word
    assert rouge_l(["a"], [[]]) == 0


def test_cider_d_is_ten_for_the_reference_itself_and_zero_without_common_words() -> None:
    people = [["a red star".split() * 2], ["two blue dogs run home".split()]]
    assert cider_d(["a red star".split() * 2, "nothing of it here now".split()], people) == pytest.approx([10, 0])


def test_cider_d_of_one_picture_is_zero_because_each_word_is_in_every_picture() -> None:
    assert cider_d([["a"]], [[["a"]]]) == [0]


def test_cider_d_penalises_length_and_cider_does_not() -> None:
    people = [["a red star".split()], ["two blue dogs run home".split()]]
    repeated = ["a red star a red star".split(), ["nothing"]]
    assert cider(repeated, people)[0] > cider_d(repeated, people)[0] > 0
    assert cider([several[0] for several in people], people) == pytest.approx([7.5, 10])  # three words have no 4-gram


def test_a_part_can_be_scored_with_the_word_rarities_of_the_whole_set() -> None:
    people = [["a dog here".split()], ["a cat here".split()], ["a cat there".split()], ["a dog sits".split()]]
    said = ["a cat here".split(), "a cat".split(), "a dog there".split(), "dog".split()]
    for scored in (cider_d, cider):
        whole = scored(said, people)
        assert scored(said[1:3], people[1:3], idf_from=people) == pytest.approx(whole[1:3])
        assert scored(said[1:3], people[1:3]) != pytest.approx(whole[1:3])
    part = statistics(said, people).part([1, 2]).scores()
    assert part == pytest.approx(statistics(said[1:3], people[1:3], idf_from=people).scores())


def test_words_in_every_picture_have_no_weight() -> None:
    people = [["a dog here now".split()], ["a cat here now".split()]]
    only_common, right = cider_d(["a here now".split(), "a cat here now".split()], people)
    assert only_common == 0
    assert right == pytest.approx(10)


def test_an_empty_caption_scores_zero() -> None:
    scores = corpus_scores([[], ["a", "b"]], [[["a"]], [["c"]]])
    assert scores["CIDEr-D"] == 0
    assert scores["ROUGE-L"] == 0


@pytest.mark.parametrize("corpus", [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_a_corpus_that_cannot_be_scored_is_rejected(corpus: tuple) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        corpus_scores(*corpus)


def test_scores_of_each_picture_equal_those_of_a_corpus_with_one_picture() -> None:
    said, people = ["a b c".split(), "x y".split()], [["a b d".split()], ["x".split(), "z x y w".split()]]
    each = statistics(said, people).each()
    for i in range(2):
        alone = corpus_scores(said[i : i + 1], people[i : i + 1])
        for name in score_names()[:5]:
            assert each[name][i] == pytest.approx(alone[name])


def test_captions_of_ten_thousand_words_are_scored() -> None:
    rng = random.Random(0)
    long = [f"w{rng.randrange(500)}" for _ in range(10_000)]
    scores = corpus_scores([long, ["a"] * 10_000], [[long[::-1], long], [["a"], ["b"] * 10_000]])
    assert scores["ROUGE-L"] > 0.4
    assert all(math.isfinite(value) for value in scores.values())


def test_no_break_spaces_split_n_grams_but_not_the_words_of_rouge() -> None:
    scores = corpus_scores([["1\xa01/2", "cups"], ["x"]], [[["1", "cups"]], [["y"]]])
    apart = corpus_scores([["1", "1/2", "cups"], ["x"]], [[["1", "cups"]], [["y"]]])
    assert scores["BLEU-1"] == apart["BLEU-1"]
    assert scores["CIDEr-D"] == apart["CIDEr-D"]
    assert scores["ROUGE-L"] != apart["ROUGE-L"]
