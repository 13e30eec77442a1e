"""Candidates and references -> n-gram counts as NumPy arrays.

A *corpus* has one candidate and one or more references per picture: `candidates[i]` is a list of words, `references[i]`
a list of such lists. Each n-gram is a number, and a caption's count of an n-gram is a row in a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

Words = Sequence[str]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]

MAX_N = 4


@dataclass(frozen=True)
class Grams:
    """The n-grams of one length, as numbers below `kinds`.

    A *key* is picture * kinds + n-gram.

    Attributes:
        kinds: number of distinct n-grams.
        candidate_keys, candidate_counts: distinct n-grams of each candidate, ascending, and their counts.
        reference, gram, counts: distinct n-grams of each reference: index of the reference, n-gram, count.
        keys, most: distinct n-grams of each picture's references, ascending, and the highest count in one reference.
        idf: (kinds,) ln(pictures / pictures with the n-gram in a reference); 0 such pictures count as 1.
    """

    kinds: int
    candidate_keys: Integers
    candidate_counts: Integers
    reference: Integers
    gram: Integers
    counts: Integers
    keys: Integers
    most: Integers
    idf: Floats


@dataclass(frozen=True)
class Corpus:
    """Candidates and references, with their counts.

    Attributes:
        candidates: the words of one caption per picture.
        references: the words of one or more captions per picture.
        candidate_lengths: (pictures,) words.
        reference_lengths: (references,) words.
        picture: (references,) index of the picture, ascending.
        grams: for n = 1 .. 4.
    """

    candidates: Sequence[Words]
    references: Sequence[Sequence[Words]]
    candidate_lengths: Integers
    reference_lengths: Integers
    picture: Integers
    grams: list[Grams]


def count(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> Corpus:
    """Count the n-grams of a corpus.

    Args:
        candidates: one caption per picture.
        references: one or more captions per picture.
        idf_from: the references that set how rare an n-gram is (default: `references`). To score a part of a set with
            the same scores per picture, pass the references of the whole set.

    Raises:
        ValueError: no pictures, different lengths, or a picture without a reference.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError("needs at least one picture, a candidate each, and a reference or more each")
    others = idf_from or []
    words, lengths = _numbered([*candidates, *chain.from_iterable(references), *chain.from_iterable(others)])
    picture, others_picture = (np.repeat(np.arange(len(sets)), [*map(len, sets)]) for sets in (references, others))
    first_reference, first_other = len(candidates), len(candidates) + len(picture)
    counted = []
    for grams, kinds, caption in _ngrams(words, lengths):
        # The order of captions: candidates, references, references that only set the weights.
        keys, counts = _tally(caption * kinds + grams)
        first, last = np.searchsorted(keys, (first_reference * kinds, first_other * kinds))
        reference, gram = np.divmod(keys[first:last] - first_reference * kinds, kinds)
        pairs, most = _greatest(picture[reference] * kinds + gram, counts[first:last])
        if others:
            other, other_gram = np.divmod(keys[last:] - first_other * kinds, kinds)
            having, _ = _tally(others_picture[other] * kinds + other_gram)
        else:
            having = pairs
        frequency = np.bincount(having % kinds, minlength=kinds)
        counted.append(
            Grams(
                kinds=kinds,
                candidate_keys=keys[:first],
                candidate_counts=counts[:first],
                reference=reference,
                gram=gram,
                counts=counts[first:last],
                keys=pairs,
                most=most,
                idf=np.log(len(others) or len(candidates)) - np.log(np.maximum(frequency, 1)),
            )
        )
    return Corpus(
        candidates, references, lengths[:first_reference], lengths[first_reference:first_other], picture, counted
    )


def first_places(ascending: Integers) -> Integers:
    """Return the index of the first occurrence of each value."""
    return np.flatnonzero(np.diff(ascending, prepend=-1))


def lookup(keys: Integers, values: npt.NDArray, wanted: Integers) -> npt.NDArray:
    """Return the value of each wanted key, 0 if `keys` (ascending) does not have it."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _numbered(captions: Sequence[Words]) -> tuple[Integers, Integers]:
    """Return all words of all captions as one array of numbers, and the length of each caption."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(captions)))}
    if any(word.split() != [word] for word in numbers):
        # Tokens of numbers may contain no-break spaces: coco-caption splits n-grams there, but not ROUGE's words.
        return _numbered([" ".join(caption).split() for caption in captions])
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    words = map(numbers.__getitem__, chain.from_iterable(captions))
    return np.fromiter(words, np.int64, int(lengths.sum())), lengths


def _ngrams(words: Integers, lengths: Integers) -> Iterator[tuple[Integers, int, Integers]]:
    """Yield for n = 1 .. 4: the number of each n-gram in the text, the number of kinds, the index of its caption."""
    caption = np.repeat(np.arange(len(lengths)), lengths)
    # Words up to the end of the caption, the word itself included
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))
    place, grams = np.arange(len(words)), words
    vocabulary = kinds = int(words.max(initial=0)) + 1
    yield grams, kinds, caption
    for n in range(1, MAX_N):
        fits = left[place] > n
        place, shorter = place[fits], grams[fits]
        different, grams = np.unique(shorter * vocabulary + words[place + n], return_inverse=True)
        yield grams, max(1, len(different)), caption[place]


def _tally(keys: Integers) -> tuple[Integers, Integers]:
    """Return the distinct keys, ascending, and their counts."""
    keys = np.sort(keys)
    first = first_places(keys)
    return keys[first], np.diff(first, append=len(keys))


def _greatest(keys: Integers, values: Integers) -> tuple[Integers, Integers]:
    """Return the distinct keys, ascending, and the greatest value of each."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = first_places(keys)
    return keys[first], np.maximum.reduceat(values[order], first) if len(first) else values
