"""How captions go wrong as language: they break off, or repeat themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

from pipeline.evaluation.metrics.corpus import Words

_RARE = 0.01  # a word that ends fewer of its captions than this leaves a caption unfinished, like "with" or "a"
_LOOP = 3  # words; a sequence this long that occurs twice is a loop


class Endings:
    """The words that captions of people end with.

    Args:
        captions: their words.
    """

    def __init__(self, captions: Iterable[Words]) -> None:
        several = [caption for caption in captions if caption]
        self._all = Counter(chain.from_iterable(several))
        self._last = Counter(caption[-1] for caption in several)

    def is_unfinished(self, caption: Words) -> bool:
        """Return whether a caption breaks off: it is empty, or its last word hardly ever is the last one of people's.

        A word that people never use says nothing.
        """
        if not caption:
            return True
        word = caption[-1]
        return bool(self._all[word]) and self._last[word] < _RARE * self._all[word]

    def unfinished_share(self, captions: Sequence[Words]) -> float:
        """Return the share of captions that break off."""
        return sum(map(self.is_unfinished, captions)) / max(1, len(captions))


def is_loop(caption: Words) -> bool:
    """Return whether a caption has a word twice in a row, or three words in the same order twice.

    A doubled emoji is none: people double them on purpose.

    >>> is_loop("a dog dog runs".split()), is_loop("a red boat and a red boat".split()), is_loop("a b a c".split())
    (True, True, False)
    >>> is_loop("the sea 🌊 🌊".split())
    False
    """
    if any(word == following and word.isalnum() for word, following in pairwise(caption)):
        return True
    grams = [tuple(caption[i : i + _LOOP]) for i in range(len(caption) - _LOOP + 1)]
    return len(set(grams)) < len(grams)


def loop_share(captions: Sequence[Words]) -> float:
    """Return the share of captions that repeat themselves, see `is_loop`."""
    return sum(map(is_loop, captions)) / max(1, len(captions))
