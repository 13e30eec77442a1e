"""BLEU-1..4, ROUGE-L, CIDEr-D and CIDEr of tokenized captions, as coco-caption computes them, and of each picture.

Written from the papers and from coco-caption's measured behaviour; the tests hold the results against its published
scores and against its Python port. A *corpus* is one candidate a picture and the references of that picture:
`candidates[i]` is a list of words, `references[i]` a list of such lists.

N-grams are counted by NumPy: each is a number, and what a caption has of it is a row of a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import numpy.typing as npt

Words = Sequence[str]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]

MAX_N = 4
NAMES = (*(f"BLEU-{n}" for n in range(1, MAX_N + 1)), "ROUGE-L", "CIDEr-D", "CIDEr")
_SIGMA = 6.0  # words, of CIDEr-D's penalty
_BETA = 1.2  # of ROUGE-L: how much more recall counts than precision


@dataclass(frozen=True)
class Statistics:
    """What the scores of any part of a corpus follow from: a row a picture.

    Attributes:
        matches: (pictures, 4) n-grams of the candidate that a reference has too, n from 1 to 4.
        totals: (pictures, 4) n-grams of the candidate.
        lengths: (pictures,) words of the candidate.
        reference_lengths: (pictures,) words of the reference nearest in length.
        rouge_l, cider_d, cider: (pictures,) these scores.
    """

    matches: Integers
    totals: Integers
    lengths: Integers
    reference_lengths: Integers
    rouge_l: Floats
    cider_d: Floats
    cider: Floats

    def scores(self) -> dict[str, float]:
        """The scores of the corpus, by the names in `NAMES`."""
        counted = (self.matches, self.totals, self.lengths, self.reference_lengths)
        bleu = _bleu(*(part.sum(axis=0, keepdims=True) for part in counted))[0]
        means = (math.fsum(part) / len(part) for part in (self.rouge_l, self.cider_d, self.cider))
        return dict(zip(NAMES, map(float, (*bleu, *means)), strict=True))

    def each(self) -> dict[str, Floats]:
        """The scores of each picture, (pictures,) by the names in `NAMES`; BLEU is that of the picture alone."""
        bleu_of_each = _bleu(self.matches, self.totals, self.lengths, self.reference_lengths)
        return dict(zip(NAMES, (*bleu_of_each.T, self.rouge_l, self.cider_d, self.cider), strict=True))

    def part(self, pictures: Sequence[int] | Integers) -> Statistics:
        """The same of some of the pictures, by their places; CIDEr's weights stay those of the whole set."""
        return Statistics(*(getattr(self, field.name)[np.asarray(pictures)] for field in fields(self)))


def statistics(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> Statistics:
    """All that is counted of a corpus.

    Args:
        candidates: one caption a picture.
        references: one or more captions a picture.
        idf_from: the references of the pictures in which CIDEr looks up how rare an n-gram is (default: `references`).
            Give the whole set's where only a part of its pictures is scored, so that the scores of one stay the same.

    Raises:
        ValueError: no pictures, lengths that differ, or a picture without a reference.
    """
    corpus = _counted(candidates, references, idf_from)
    mine, theirs = corpus.candidate_lengths, corpus.reference_lengths
    # Of the references nearest in length the shortest, as one number that is least for it
    nearest = np.minimum.reduceat((np.abs(theirs - mine[corpus.picture]) << 32) + theirs, _firsts(corpus.picture))
    return Statistics(
        matches=np.stack([_matches(grams, len(mine)) for grams in corpus.grams], axis=1),
        totals=np.maximum(mine[:, None] - np.arange(MAX_N), 0),
        lengths=mine,
        reference_lengths=nearest & (2**32 - 1),
        rouge_l=np.array([rouge_l(c, r) for c, r in zip(candidates, references, strict=True)]),
        cider_d=_cider(corpus, clipped=True),
        cider=_cider(corpus, clipped=False),
    )


def score(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """All scores of a corpus: `BLEU-1` .. `BLEU-4`, `ROUGE-L` (0 to 1), `CIDEr-D` and `CIDEr` (0 to 10).

    Raises:
        ValueError: no pictures, lengths that differ, or a picture without a reference.
    """
    return statistics(candidates, references).scores()


def resampled(corpus: Statistics, times: Integers) -> Floats:
    """The scores of corpora that are made of the pictures of one: (corpora, 7) in the order of `NAMES`.

    Args:
        corpus: of each picture what it adds.
        times: (corpora, pictures) how often each picture is in each of them.
    """
    weights = times.astype(np.float64)  # counts stay exact, and products are fast
    means = weights @ np.stack([corpus.rouge_l, corpus.cider_d, corpus.cider], axis=1)
    counted = (corpus.matches, corpus.totals, corpus.lengths, corpus.reference_lengths)
    bleu = _bleu(*(weights @ part for part in counted))
    return np.concatenate([bleu, means / weights.sum(axis=1, keepdims=True)], axis=1)


# BLEU ----------------------------------------------------------------------------------------------------------------


def _bleu(matches: _Numbers, totals: _Numbers, lengths: _Numbers, reference_lengths: _Numbers) -> Floats:
    """(corpora, 4) BLEU-1 to BLEU-4 of (corpora, 4) matches and totals, and (corpora,) lengths.

    Papineni et al., ACL 2002, with the closest reference length. coco-caption adds 1e-15 to matches and 1e-9 to totals,
    which gives a corpus without a match a tiny score instead of none.
    """
    precisions = np.cumprod((matches + 1e-15) / (totals + 1e-9), axis=1)
    ratio = (lengths + 1e-15) / (reference_lengths + 1e-9)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    scores: Floats = precisions ** (1 / np.arange(1, MAX_N + 1)) * brevity[:, None]
    return scores


def _matches(grams: _Grams, pictures: int) -> Integers:
    """(pictures,) n-grams of the candidate that references have too, each at most as often as one reference has it."""
    clipped = np.minimum(grams.candidate_counts, _looked_up(grams.keys, grams.most, grams.candidate_keys))
    return np.bincount(grams.candidate_keys // grams.kinds, clipped, pictures).astype(np.int64)


# ROUGE-L -------------------------------------------------------------------------------------------------------------


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of one picture: F-measure of the longest common subsequence (Lin, ACL workshop 2004).

    As in coco-caption, precision and recall are each the best over the references, and a caption without a word is one
    empty word.
    """
    mine = candidate or [""]
    where: dict[str, int] = {}  # the places of each word as bits
    for i, word in enumerate(mine):
        where[word] = where.get(word, 0) | 1 << i
    precision = recall = 0.0
    for reference in references:
        theirs = reference or [""]
        common = _common_subsequence(where, len(mine), theirs)
        precision, recall = max(precision, common / len(mine)), max(recall, common / len(theirs))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(where: dict[str, int], length: int, words: Words) -> int:
    """The length of the longest common subsequence, all places of the first at once (Hyyro, AWOCA 2004).

    Bit i of `row` is 0 where one more word is common to `words` so far and the first i + 1 places.
    """
    everywhere = row = (1 << length) - 1
    for word in words:
        if matched := row & where.get(word, 0):
            row = (row + matched | row - matched) & everywhere
    return length - row.bit_count()


# CIDEr ---------------------------------------------------------------------------------------------------------------


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> list[float]:
    """CIDEr-D a picture, 0 to 10 (Vedantam, Zitnick and Parikh, CVPR 2015): what coco-caption calls CIDEr.

    An n-gram weighs its count times ln(pictures / pictures whose references have it). The candidate's counts are
    clipped to the reference's, and a Gaussian of the difference in length (sigma 6 words) makes captions that repeat
    themselves score low. With one picture every weight is ln 1 = 0, and so is the score.

    Args:
        candidates: one caption a picture.
        references: one or more captions a picture.
        idf_from: see `statistics`.

    Raises:
        ValueError: as `statistics`.
    """
    return [float(value) for value in _cider(_counted(candidates, references, idf_from), clipped=True)]


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> list[float]:
    """CIDEr a picture, 0 to 10: as `cider_d`, without clipping and without the penalty of length.

    As in the authors' code the mean cosine is multiplied by 10 here too, and words are not stemmed.
    """
    return [float(value) for value in _cider(_counted(candidates, references, idf_from), clipped=False)]


def _cider(corpus: _Corpus, clipped: bool) -> Floats:
    pictures, picture = len(corpus.candidate_lengths), corpus.picture
    total = np.zeros(len(picture))  # of each reference
    for grams in corpus.grams:
        mine = grams.candidate_counts * grams.idf[grams.candidate_keys % grams.kinds]
        my_norm = np.sqrt(np.bincount(grams.candidate_keys // grams.kinds, mine**2, pictures))
        theirs = grams.counts * grams.idf[grams.gram]
        norm = np.sqrt(np.bincount(grams.reference, theirs**2, len(total))) * my_norm[picture]
        matched = _looked_up(grams.candidate_keys, mine, picture[grams.reference] * grams.kinds + grams.gram)
        products = (np.minimum(matched, theirs) if clipped else matched) * theirs
        cosine = np.bincount(grams.reference, products, len(total))
        total += np.divide(cosine, norm, out=np.zeros_like(total), where=norm > 0)
    if clipped:
        # coco-caption takes a caption's number of bigrams for its length.
        mine, theirs = (np.maximum(n - 1, 0) for n in (corpus.candidate_lengths, corpus.reference_lengths))
        total *= np.exp(-((mine[picture] - theirs) ** 2) / (2 * _SIGMA**2))
    scores: Floats = 10 * np.bincount(picture, total, pictures) / (MAX_N * np.bincount(picture, minlength=pictures))
    return scores


# N-grams -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one length of a corpus, as numbers below `kinds`.

    A *key* is picture * kinds + n-gram.

    Attributes:
        kinds: how many different ones there are.
        candidate_keys, candidate_counts: each n-gram of each candidate once, ascending, and how often it is there.
        reference, gram, counts: each n-gram of each reference once: the reference's number, the n-gram, how often.
        keys, most: each n-gram of each picture's references once, ascending, and the most that one reference has of it.
        idf: (kinds,) ln(pictures / pictures whose references have it); what none has counts as what one has.
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
class _Corpus:
    """What is counted of candidates and references.

    Attributes:
        candidate_lengths: (pictures,) words.
        reference_lengths: (references,) words.
        picture: (references,) whose it is, ascending.
        grams: for n = 1 .. 4.
    """

    candidate_lengths: Integers
    reference_lengths: Integers
    picture: Integers
    grams: list[_Grams]


def _counted(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None,
) -> _Corpus:
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError("needs at least one picture, a candidate each, and a reference or more each")
    others = idf_from or []
    words, lengths = _numbered([*candidates, *chain.from_iterable(references), *chain.from_iterable(others)])
    picture, others_picture = (np.repeat(np.arange(len(sets)), [*map(len, sets)]) for sets in (references, others))
    mine, all_mine = len(candidates), len(candidates) + len(picture)
    counted = []
    for grams, kinds, caption in _ngrams(words, lengths):
        # Captions are numbered: first the candidates, then the references, last those that only tell what is rare.
        keys, counts = _tally(caption * kinds + grams)
        first, last = np.searchsorted(keys, (mine * kinds, all_mine * kinds))
        reference, gram = np.divmod(keys[first:last] - mine * kinds, kinds)
        pairs, most = _greatest(picture[reference] * kinds + gram, counts[first:last])
        if others:
            other, other_gram = np.divmod(keys[last:] - all_mine * kinds, kinds)
            having, _ = _tally(others_picture[other] * kinds + other_gram)
        else:
            having = pairs
        frequency = np.bincount(having % kinds, minlength=kinds)
        counted.append(
            _Grams(
                kinds=kinds,
                candidate_keys=keys[:first],
                candidate_counts=counts[:first],
                reference=reference,
                gram=gram,
                counts=counts[first:last],
                keys=pairs,
                most=most,
                idf=np.log(len(others) or mine) - np.log(np.maximum(frequency, 1)),
            )
        )
    return _Corpus(lengths[:mine], lengths[mine:all_mine], picture, counted)


def _numbered(captions: Sequence[Words]) -> tuple[Integers, Integers]:
    """All words of all captions as numbers, one after the other, and the length of each caption."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(captions)))}
    if any(word.split() != [word] for word in numbers):
        # Tokens of numbers may hold no-break spaces, at which coco-caption parts n-grams (but not ROUGE's words).
        return _numbered([" ".join(caption).split() for caption in captions])
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    words = map(numbers.__getitem__, chain.from_iterable(captions))
    return np.fromiter(words, np.int64, int(lengths.sum())), lengths


def _ngrams(words: Integers, lengths: Integers) -> Iterator[tuple[Integers, int, Integers]]:
    """For n = 1 .. 4 the number of each n-gram in the text, how many kinds there are, and which caption it is in."""
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(
        len(words)
    )  # words to the caption's end, this one with them
    place, grams = np.arange(len(words)), words
    vocabulary = kinds = int(words.max(initial=0)) + 1
    yield grams, kinds, caption
    for n in range(1, MAX_N):
        fits = left[place] > n
        place, shorter = place[fits], grams[fits]
        different, grams = np.unique(shorter * vocabulary + words[place + n], return_inverse=True)
        yield grams, max(1, len(different)), caption[place]


def _tally(keys: Integers) -> tuple[Integers, Integers]:
    """Each key once, ascending, and how often it is there."""
    keys = np.sort(keys)
    first = _firsts(keys)
    return keys[first], np.diff(first, append=len(keys))


def _greatest(keys: Integers, values: Integers) -> tuple[Integers, Integers]:
    """Each key once, ascending, and the greatest of its values."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = _firsts(keys)
    return keys[first], np.maximum.reduceat(values[order], first) if len(first) else values


def _firsts(ascending: Integers) -> Integers:
    """Where each value is for the first time."""
    return np.flatnonzero(np.diff(ascending, prepend=-1))


def _looked_up(keys: Integers, values: npt.NDArray, wanted: Integers) -> npt.NDArray:
    """The value of each of the `wanted` keys, of `keys` that ascend; 0 where it is not among them."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
