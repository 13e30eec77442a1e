from __future__ import annotations

import math

import pytest

from pipeline.evaluation import diversity
from pipeline.evaluation.diversity import (
    best_of,
    emoji_of,
    hashtags_of,
    most_different,
    mutual_bleu,
    recall,
    self_cider,
    wording,
)
from pipeline.evaluation.metrics.cider import cider, cider_d
from pipeline.evaluation.metrics.registry import METRICS, Metric
from pipeline.evaluation.metrics.rouge_l import rouge_l

PEOPLE = [["a red dog runs".split()], ["two blue cats sit here".split()], ["an old green boat".split()]]


def test_distinct_n_grams_by_hand() -> None:
    captions = ["a dog a dog".split(), "a cat".split()]
    assert diversity.distinct(captions, 1) == 3 / 6
    assert diversity.distinct(captions, 2) == 3 / 4  # of "a dog", "dog a", "a dog", "a cat"
    assert diversity.distinct([[], ["a"]], 2) == 0


def test_captions_with_the_same_words_count_as_one() -> None:
    assert wording(["A dog!", "a dog", "a cat"], [["x"]] * 3)["distinct_captions"] == 2 / 3


def test_length_counts_words() -> None:
    assert diversity.mean_length(["a dog".split(), []]) == 1
    assert diversity.mean_length([]) == 0


def test_a_predicate_decides_which_words_are_unknown() -> None:
    assert diversity.unknown_share(["a dgo".split(), "a cat".split()], {"a", "cat", "dog"}.__contains__) == 1 / 4


def test_copies_have_the_same_words_and_an_empty_caption_is_no_copy() -> None:
    found = wording(["A dog.", "a cat runs", ""], [["x"]] * 3, training=["a dog", "a cat", ""])
    assert found["copied"] == 1 / 3
    assert found["unknown_words"] == 1 / 5
    assert "copied" not in wording(["A dog."], [["x"]])


def test_emoji_and_hashtags_are_found_in_texts() -> None:
    assert emoji_of("love ❤️ you ❤ 👩‍👩‍👧© no") == {"❤", "👩‍👩‍👧"}
    assert hashtags_of("#Love #love#sea ＃x #1 # and#me") == {"love", "sea", "x", "me"}


def test_recall_uses_the_best_reference_and_skips_pictures_without_any() -> None:
    captions = ["at sea 🌊", "so good", "here ✨ 🌊"]
    references = [["sea 🌊 ☀️", "waves 🌊"], ["nothing"], ["✨ 🌿"]]
    assert recall(captions, references, emoji_of) == (1 + 1 / 2) / 2
    assert recall(captions, references, hashtags_of) is None
    assert recall(["#Sea"], [["by the #sea #sun"]], hashtags_of) == 1 / 2


def test_the_best_of_several_captions_counts() -> None:
    several = [["a dog".split(), "a red dog runs".split()], ["nothing".split()], ["an old boat".split(), ["x"]]]
    found = best_of(several, PEOPLE)
    alone = [[cider_d([c], [PEOPLE[i][0:1]], idf_from=PEOPLE)[0] for c in several[i]] for i in range(3)]
    assert found["CIDEr-D"] == pytest.approx(sum(map(max, alone)) / 3)
    assert found["ROUGE-L"] == pytest.approx((1 + 0 + rouge_l("an old boat".split(), PEOPLE[2])) / 3)


def test_the_best_of_several_is_computed_for_every_metric_that_scores_single_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METRICS, "Length", Metric(lambda corpus: corpus.candidate_lengths))
    found = best_of([[["a"], ["a", "dog"]], [["a"] * 4], [["x"]]], PEOPLE)
    assert {"ROUGE-L", "CIDEr-D", "CIDEr", "Length"} <= set(found)
    assert "BLEU-4" not in found
    assert found["Length"] == pytest.approx((2 + 4 + 1) / 3)


def test_self_cider_is_zero_for_identical_captions_one_for_unrelated_ones_and_between_for_similar_ones() -> None:
    copies = ["a red dog runs".split()] * 3
    unrelated = ["a red dog runs".split(), "two blue cats sit".split(), "an old green boat".split()]
    similar = ["a red dog runs".split(), "a red dog sits".split(), "a red boat".split()]
    same, different, between = self_cider([copies, unrelated, similar], PEOPLE)
    assert same == pytest.approx(0, abs=1e-6)
    assert different == pytest.approx(1, abs=1e-6)
    assert 0.1 < between < 0.9


def test_self_cider_by_hand() -> None:
    # Two captions whose cosine is c have the eigenvalues 1 + c and 1 - c.
    pair = ["red dog runs fast".split(), "red dog runs slowly".split()]
    kernel = [cider([one], [[other]], idf_from=PEOPLE)[0] for one in pair for other in pair]
    c = kernel[1] / kernel[0]
    expected = -math.log2(math.sqrt(1 + c) / (math.sqrt(1 + c) + math.sqrt(1 - c)))
    assert self_cider([pair], PEOPLE) == pytest.approx([expected])


def test_captions_without_words_do_not_differ() -> None:
    assert self_cider([[[], []]], PEOPLE) == [0]


def test_mutual_bleu_is_one_for_identical_captions_and_zero_for_unrelated_ones() -> None:
    copies = [["a red dog runs fast".split()] * 3] * 2
    unrelated = [["a red dog runs fast".split(), "two blue cats sit here".split()]]
    assert mutual_bleu(copies) == pytest.approx(1, abs=1e-6)
    assert mutual_bleu(unrelated) == pytest.approx(0, abs=1e-6)


def test_diversity_needs_two_captions() -> None:
    with pytest.raises(ValueError, match="two or more captions"):
        self_cider([[["a"]]], PEOPLE)
    with pytest.raises(ValueError, match="two or more captions"):
        mutual_bleu([[["a"]]])


def test_captions_that_share_few_words_are_chosen_after_the_first() -> None:
    captions = ["a red dog runs", "a red dog runs fast", "the boat", "a red dog walks", "a small boat"]
    assert most_different(captions, 3) == [0, 2, 4]
    assert most_different(captions, 99) == [0, 2, 4, 3, 1]
    assert most_different([], 3) == []
