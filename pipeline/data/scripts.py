"""Scripts that are written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer and Burmese.

Captions in these scripts are counted in characters. A segmenter would be needed to find words.
"""

from __future__ import annotations

import regex

_SCRIPTS = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}"
# A pattern (regex, V1) of one character with its marks. Script extensions (scx) include the Japanese length mark.
CHARACTER = rf"[[{_SCRIPTS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"

_CHARACTER = regex.compile(CHARACTER, regex.V1)
_LETTER = regex.compile(r"\p{L}")


def space_characters(text: str) -> str:
    """Return the text with spaces around each character of these scripts.

    >>> space_characters("一只dog").split()
    ['一', '只', 'dog']
    """
    return text if text.isascii() else _CHARACTER.sub(r" \g<0> ", text)


def are_unspaced(text: str) -> bool:
    """Return whether at least half of the letters of a text are in these scripts; False without letters."""
    characters = 0 if text.isascii() else len(_CHARACTER.findall(text))
    return characters > 0 and 2 * characters >= len(_LETTER.findall(text))
