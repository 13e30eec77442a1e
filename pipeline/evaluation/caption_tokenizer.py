"""Choose how captions are split into words to score: by the Penn Treebank rules, or into characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import regex

from pipeline.data.scripts import CHARACTER, are_unspaced
from pipeline.evaluation.ptb.tokens import TOKENIZER, ptb_tokenize

# A character of a script without spaces, or a run of other letters and digits
_TOKEN = regex.compile(rf"{CHARACTER}|(?:(?!{CHARACTER})[\p{{L}}\p{{N}}]\p{{M}}*)+", regex.V1)


@dataclass(frozen=True)
class CaptionTokenizer:
    """How captions are split into words.

    Attributes:
        name: description for reports.
        words: Return the words of a caption.
    """

    name: str
    words: Callable[[str], list[str]]


def character_tokenize(caption: str) -> list[str]:
    """Return the characters of scripts without spaces; runs of other letters and digits stay words.

    Text is in Unicode NFKC and lower case. Punctuation and emoji are dropped, like the Penn Treebank tokenizer does.

    >>> character_tokenize("一只 Dog，在跑。")
    ['一', '只', 'dog', '在', '跑']
    """
    return [*_TOKEN.findall(unicodedata.normalize("NFKC", caption).lower())]


PENN_TREEBANK = CaptionTokenizer(TOKENIZER, ptb_tokenize)
CHARACTERS = CaptionTokenizer(
    "characters, for languages without spaces; other letters in words (lower case, punctuation dropped)",
    character_tokenize,
)


def tokenizer_for(references: Iterable[Iterable[str]]) -> CaptionTokenizer:
    """Return the tokenizer for captions in the language of the references.

    Args:
        references: one or more captions per picture.

    Returns:
        `CHARACTERS` if at least half of the letters are in scripts without spaces, else `PENN_TREEBANK`.
    """
    return CHARACTERS if are_unspaced("\n".join(chain.from_iterable(references))) else PENN_TREEBANK
