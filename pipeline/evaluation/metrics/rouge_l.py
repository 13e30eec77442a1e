"""ROUGE-L: F-measure of the longest common subsequence (Lin, ACL workshop 2004), as in coco-caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.corpus import Corpus, Floats, Words

_BETA = 1.2  # weight of recall relative to precision


def per_picture(corpus: Corpus) -> Floats:
    """Return ROUGE-L of each picture, (pictures,), 0 to 1."""
    return np.array([rouge_l(c, r) for c, r in zip(corpus.candidates, corpus.references, strict=True)])


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """Return ROUGE-L of one picture.

    As in coco-caption, precision and recall are each the best over the references, and a caption without words counts
    as one empty word.
    """
    words = candidate or [""]
    places: dict[str, int] = {}  # word -> bit mask of its places
    for i, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << i
    precision = recall = 0.0
    for reference in references:
        reference_words = reference or [""]
        common = _common_subsequence(places, len(words), reference_words)
        precision, recall = max(precision, common / len(words)), max(recall, common / len(reference_words))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(places: dict[str, int], length: int, words: Words) -> int:
    """Return the length of the longest common subsequence, with bit-parallel rows (Hyyro, AWOCA 2004).

    Bit i of `row` is 0 if the subsequence grows by one at place i of the first caption.
    """
    full = row = (1 << length) - 1
    for word in words:
        if matched := row & places.get(word, 0):
            row = (row + matched | row - matched) & full
    return length - row.bit_count()
