from __future__ import annotations

import pytest

from pipeline.evaluation.caption_tokenizer import CHARACTERS, PENN_TREEBANK, character_tokenize, tokenizer_for
from pipeline.evaluation.diversity import wording
from pipeline.evaluation.metrics.registry import names_of_means
from pipeline.evaluation.metrics.scoring import statistics
from pipeline.evaluation.ptb.tokens import ptb_tokenize

# Captions of four pictures in one language each
CHINESE = [
    "一只棕色的狗在草地上奔跑",
    "两个孩子在海边玩沙子",
    "一辆红色的汽车停在房子前面",
    "桌子上放着一杯咖啡和一本书",
]
JAPANESE = [
    "茶色い犬が芝生の上を走っている",
    "二人の子供が海辺で遊んでいる",
    "赤い車が家の前に止まっている",
    "机の上にコーヒーと本がある",
]
THAI = [
    "สุนัขสีน้ำตาลวิ่งบนสนามหญ้า",
    "เด็กสองคนเล่นทรายที่ชายหาด",
    "รถยนต์สีแดงจอดหน้าบ้าน",
    "กาแฟหนึ่งแก้ววางบนโต๊ะ",
]
MIXED = [
    "iPhone拍的一只棕色的狗",
    "两个孩子在Sydney玩沙子",
    "一辆红色的BMW停在家门口",
    "桌子上放着一杯Latte咖啡",
]


@pytest.mark.parametrize("captions", [CHINESE, JAPANESE, THAI, MIXED])
def test_identical_captions_score_highest_and_one_changed_character_costs_a_little(captions: list[str]) -> None:
    tokenizer = tokenizer_for([[caption] for caption in captions])
    assert tokenizer is CHARACTERS
    references = [[tokenizer.words(caption)] for caption in captions]
    middle = len(captions[0]) // 2
    changed = [caption[:middle] + "猫" + caption[middle + 1 :] for caption in captions]
    others = [*captions[1:], captions[0]]
    same, near, other = (
        {**scored.scores(), "first": scored.each()["CIDEr-D"][0]}
        for texts in (captions, changed, others)
        for scored in [statistics([tokenizer.words(text) for text in texts], references)]
    )
    for name in names_of_means():
        top = 10 if name.startswith("CIDEr") else 1
        assert same[name] == pytest.approx(top)
        assert 0.3 * top < near[name] < top
        assert other[name] < 0.35 * top
        assert other[name] < 0.7 * near[name]
    assert same["BLEU-4"] == pytest.approx(1)
    assert 0.4 < near["BLEU-4"] < 1
    assert other["BLEU-4"] < 0.1
    assert other["CIDEr-D"] < 0.5


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只 Dog，在跑。", ["一", "只", "dog", "在", "跑"]),
        ("コーヒーを飲む", ["コ", "ー", "ヒ", "ー", "を", "飲", "む"]),
        ("ｺｰﾋｰ", ["コ", "ー", "ヒ", "ー"]),
        ("น้ำ", ["น้ํ", "า"]),
        ("ＡＢＣ１２3个🔥！", ["abc123", "个"]),
        ("café 时间", ["café", "时", "间"]),
        ("", []),
    ],
)
def test_characters_are_words_and_other_letters_stay_together(caption: str, words: list[str]) -> None:
    assert character_tokenize(caption) == words


@pytest.mark.parametrize(
    "references",
    [
        [["a dog on the grass"], ["un café"]],
        [["개가 잔디 위를 달린다"], ["собака бежит"]],
        [["a long caption about the city of 東京"]],
        [["🔥 123 !"]],
        [],
    ],
)
def test_languages_with_spaces_keep_the_penn_treebank_tokenizer(references: list[list[str]]) -> None:
    assert tokenizer_for(references) is PENN_TREEBANK
    assert PENN_TREEBANK.words is ptb_tokenize


def test_half_of_the_letters_decide() -> None:
    assert tokenizer_for([["狗狗 ab"]]) is CHARACTERS
    assert tokenizer_for([["狗狗 abc"]]) is PENN_TREEBANK
    assert tokenizer_for([["狗狗狗狗"], ["abc"]]) is CHARACTERS


def test_wording_counts_characters_in_the_language_of_the_references() -> None:
    figures = wording(["一只狗", "一只猫"], [["一只狗"], ["一只狗"]], training=["一只狗"])
    assert figures["words"] == 3
    assert figures["distinct-1"] == 4 / 6
    assert figures["unknown_words"] == 1 / 6
    assert figures["copied"] == 1 / 2
