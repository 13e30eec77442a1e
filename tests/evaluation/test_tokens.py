from __future__ import annotations

import doctest
import json
import random
from pathlib import Path

import pytest

from pipeline.config import params
from pipeline.data import text
from pipeline.evaluation.ptb import tokens
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from tests.evaluation.mutations import PIECES, mutated

RECORDED = Path(__file__).with_name("treebank.jsonl")


@pytest.mark.parametrize("module", [tokens, text, params])
def test_the_examples_in_docstrings_are_correct(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Don’t STOP, y'all!!", "do n't stop y' all !!"),
        ("love❤️you🐕‍🦺", "love ❤ you"),
        ("#sunset @me #1", "#sunset @me # 1"),
        ("... – !", ""),
        ("café 1,000 5:30pm", "café 1,000 5:30 pm"),
        ("I can't, I'm gonna", "i ca n't i 'm gon na"),
        ("(see) [this]", "-lrb- see -rrb- -lsb- this -rsb-"),
        ("vitamin C. It helps vitamin C. daily", "vitamin c it helps vitamin c. daily"),
        ("No. 5 and no.", "no. 5 and no"),
        ("Call (650) 723-0293, 1 1/2 cups", "call -lrb-650-rrb-\xa0723-0293 1\xa01/2 cups"),
        ("£5 €5 ½ 5¢", "# 5 $ 5 1/2 5 cents"),
        (":-) <3 (^_^)", ":--rrb- < 3 -lrb-^_^-rrb-"),
    ],
)
def test_captions_are_split_into_words(caption: str, words: str) -> None:
    assert ptb_tokenize(caption) == words.split(" ") * bool(words)


def test_two_thousand_difficult_captions_are_split_as_by_the_java_tokenizer() -> None:
    recorded = [json.loads(line) for line in RECORDED.read_text().split("\n")[:-1]]
    assert len(recorded) > 2000
    wrong = [
        (caption, ptb_tokenize(caption)) for caption, words in recorded if " ".join(ptb_tokenize(caption)) != words
    ]
    assert not wrong


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_a_line_separator_counts_as_a_space(separator: str) -> None:
    assert ptb_tokenize(f"a dog{separator}on grass.{separator}") == ["a", "dog", "on", "grass"]


@pytest.mark.parametrize(
    "character", ["\x1c", "\x1d", "\x1e", "\x1f", "\x00", "\u200b", "\ufeff", "\ud83d", "𝓱", "\uffff"]
)
def test_characters_that_belong_to_no_token_separate_words(character: str) -> None:
    assert ptb_tokenize(f"dog{character}cat") == ["dog", "cat"]


@pytest.mark.parametrize("caption", ["", " ", "   ", "\n", ".", "🐕🐕", "\u200b"])
def test_a_caption_without_words_has_none(caption: str) -> None:
    assert ptb_tokenize(caption) == []


def test_the_cache_does_not_change_the_words() -> None:
    rng = random.Random(3)
    lines = [mutated(f"a red boat {piece} on the beach", rng) for piece in PIECES]
    cold = []
    for line in lines:
        tokens._KNOWN.clear()
        cold.append(ptb_tokenize(line))
    assert [ptb_tokenize(line) for line in reversed(lines)] == cold[::-1]


def test_the_cache_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST", 100)
    tokens._KNOWN.clear()
    for number in range(1000):
        assert ptb_tokenize(f"dog{number}s here") == [f"dog{number}s", "here"]
    assert len(tokens._KNOWN) <= 100


@pytest.mark.parametrize(
    "piece", "dog_|dog|5,|a,|~|<!a|a.|!?|<a_|(|a@|x/|🐕|’|-|no._|1_|._".replace("_", " ").split("|")
)
def test_a_caption_of_ten_thousand_words_is_tokenized(piece: str) -> None:
    assert len(ptb_tokenize(piece * 10_000)) <= 30_000
