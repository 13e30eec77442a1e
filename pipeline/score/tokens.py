"""Captions -> words to score."""

from __future__ import annotations

import re

TOKENIZER = "lower case; words of letters, digits and inner apostrophes; emoji one by one; punctuation dropped"

# A word; or else any one character that is neither white space nor ASCII/general punctuation, so that an
# emoji counts as a word of its own. U+FE0F and U+200D only join and style emoji.
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s!-/:-@\[-`{-~\u2000-\u206f\ufe0f]")


def tokenize(caption: str) -> list[str]:
    """The words of a caption.

    >>> tokenize("A dog's ball, on the grass!")
    ['a', "dog's", 'ball', 'on', 'the', 'grass']
    """
    return _WORD.findall(caption.lower().replace("\u2019", "'"))
