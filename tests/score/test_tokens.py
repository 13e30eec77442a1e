from __future__ import annotations

import doctest

import pytest

from pipeline import params
from pipeline.data import captions
from pipeline.score import tokens


@pytest.mark.parametrize("module", [tokens, captions, params])
def test_the_examples_in_docstrings_are_true(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Don’t STOP", ["don't", "stop"]),
        ("love❤️you🐕‍🦺", ["love", "❤", "you", "🐕", "🦺"]),
        ("#sunset @me", ["sunset", "me"]),
        ("... – !", []),
        ("café 12", ["café", "12"]),
    ],
)
def test_captions_become_words(caption: str, words: list[str]) -> None:
    assert tokens.tokenize(caption) == words
