"""Choose a caption by agreement: CIDEr-D against other captions, weighted by the captions of the training split.

Minimum Bayes risk (Kumar and Byrne, NAACL 2004) compares a candidate with the other candidates. Consensus (Devlin et
al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning") compares it with what people wrote about similar
pictures; here the more similar ones count more. The candidate's own log-probability can be added to the agreement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.metrics.cider import SIGMA
from pipeline.evaluation.metrics.corpus import MAX_N, Floats, Integers, lookup

_DIGITS = 5  # of a log-probability: coarser than the noise of another batch size in float32


@dataclass(frozen=True)
class _Vectors:
    """The TF-IDF vectors of captions for one length of n-grams, by ascending caption and n-gram.

    Attributes:
        kinds: number of distinct n-grams.
        caption, gram, weight: each distinct n-gram of each caption.
    """

    kinds: int
    caption: Integers
    gram: Integers
    weight: Floats

    def norms(self, captions: int) -> Floats:
        """Return the length of each caption's vector, `(captions,)`."""
        norms: Floats = np.sqrt(np.bincount(self.caption, self.weight**2, captions))
        return norms


class Utility:
    """CIDEr-D between any two captions, with the n-gram weights of a set of references.

    Args:
        references: one or more captions per picture; they set how rare an n-gram is, and the tokenizer.
        end_mark: is added as the last word of every caption, so that n-grams tell how captions end; empty adds none.
    """

    def __init__(self, references: Sequence[Sequence[str]], end_mark: str = "") -> None:
        self._tokenize = tokenizer_for(references).words
        self._end = [end_mark] if end_mark else []
        self._split: dict[str, list[str]] = {}  # the words of the references, which are compared again and again
        for text in chain.from_iterable(references):
            self._split[text] = self._words(text)
        captions = [self._split[text] for text in chain.from_iterable(references)]
        picture = np.repeat(np.arange(len(references)), [*map(len, references)])
        self._number = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(captions)))}
        self._rarest = float(np.log(max(1, len(references))))
        # For n = 1 .. 4: n-grams as ascending keys (number of the n-gram without its last word, last word), their idf
        self._keys: list[Integers] = []
        self._idf: list[Floats] = []
        numbers, lengths = self._numbered(captions)
        grams = numbers
        for n, place, caption in _places(lengths):
            keys, inverse = np.unique(_keys(grams, numbers, place, n, len(self._number)), return_inverse=True)
            kinds = max(1, len(keys))
            having = np.unique(picture[caption] * kinds + inverse) % kinds
            self._keys.append(keys)
            self._idf.append(self._rarest - np.log(np.maximum(np.bincount(having, minlength=len(keys)), 1)))
            grams = np.zeros_like(numbers)
            grams[place] = inverse

    def between(self, candidates: Sequence[str], references: Sequence[str]) -> Floats:
        """Return CIDEr-D of each candidate against each reference alone, `(candidates, references)`, 0 to 10."""
        words = [self._words(caption) for caption in (*candidates, *references)]
        numbers, lengths = self._numbered(words)
        first, total = len(candidates), len(words)
        scores = np.zeros((first, total - first))
        for vectors in self._vectors(numbers, lengths):
            norms = vectors.norms(total)
            split = int(np.searchsorted(vectors.caption, first))
            own = np.zeros((first, vectors.kinds))
            own[vectors.caption[:split], vectors.gram[:split]] = vectors.weight[:split]
            weight, reference = vectors.weight[split:], vectors.caption[split:] - first
            products = np.minimum(own[:, vectors.gram[split:]], weight) * weight
            sums = np.zeros_like(scores)
            if len(reference):
                starts = np.flatnonzero(np.diff(reference, prepend=-1))
                sums[:, reference[starts]] = np.add.reduceat(products, starts, axis=1)
            norm = norms[:first, None] * norms[None, first:]
            scores += np.divide(sums, norm, out=np.zeros_like(sums), where=norm > 0)
        bigrams = np.maximum(lengths - 1, 0)  # coco-caption's length of a caption
        difference = bigrams[:first, None] - bigrams[None, first:]
        scores *= 10 / MAX_N * np.exp(-(difference**2) / (2 * SIGMA**2))
        return scores

    def is_copied(self, caption: str) -> bool:
        """Return whether a caption equals one of the references, word for word; an empty one copies nothing."""
        words = tuple(self._words(caption))
        return len(words) > len(self._end) and words in self._references

    @cached_property
    def _references(self) -> frozenset[tuple[str, ...]]:
        return frozenset(map(tuple, self._split.values()))

    def _words(self, caption: str) -> list[str]:
        if caption in self._split:
            return self._split[caption]
        # Tokens of numbers may contain no-break spaces, where coco-caption splits n-grams.
        return [*" ".join(self._tokenize(caption)).split(), *self._end]

    def _numbered(self, captions: Sequence[Sequence[str]]) -> tuple[Integers, Integers]:
        """Return all words as one array of numbers, and the length of each caption; new words get new numbers."""
        new: dict[str, int] = {}
        numbers = [
            self._number[word] if word in self._number else new.setdefault(word, len(self._number) + len(new))
            for word in chain.from_iterable(captions)
        ]
        return np.array(numbers, dtype=np.int64), np.array([*map(len, captions)], dtype=np.int64)

    def _vectors(self, numbers: Integers, lengths: Integers) -> Iterator[_Vectors]:
        """Yield the vectors of captions for n = 1 .. 4."""
        known_words, words = len(self._number), int(numbers.max(initial=0)) + 1
        grams = known = numbers  # the n-gram that starts at each word: among these captions; among the references
        is_known = numbers < known_words
        for n, place, caption in _places(lengths):
            different, inverse = np.unique(_keys(grams, numbers, place, n, words), return_inverse=True)
            kinds = max(1, len(different))
            wanted = _keys(known, numbers, place, n, known_words)
            wanted[~(is_known[place] & (numbers[place + n] < known_words))] = -1
            number = lookup(self._keys[n], np.arange(len(self._keys[n])), wanted).astype(np.int64)
            found = lookup(self._keys[n], np.ones(len(self._keys[n]), dtype=bool), wanted).astype(bool)
            idf = np.full(kinds, self._rarest)
            idf[inverse[found]] = self._idf[n][number[found]]
            pairs, counts = np.unique(caption * kinds + inverse, return_counts=True)
            gram = pairs % kinds
            yield _Vectors(kinds, pairs // kinds, gram, counts * idf[gram])
            grams, known, is_known = np.zeros_like(numbers), np.zeros_like(numbers), np.zeros(len(numbers), dtype=bool)
            grams[place], known[place], is_known[place] = inverse, number, found


@dataclass(frozen=True)
class Candidates:
    """What the caption of a picture is chosen among, and the captions that people wrote about similar pictures.

    Attributes:
        texts: the candidates: beams, the best first, then samples, which may repeat each other.
        log_probabilities: mean per token of each candidate (nats), `(texts,)`; zeros if they do not count.
        references: captions of similar pictures.
        weights: how much each reference counts, `(references,)`.
    """

    texts: Sequence[str]
    log_probabilities: Floats
    references: Sequence[str]
    weights: Floats


def ranked(utility: Utility, method: str, candidates: Candidates, likelihood: float = 0.0) -> list[str]:
    """Return the distinct candidates, the best first; equal ones keep their order.

    Copies of training captions come last. Otherwise the choice would favour them, because each agrees fully with the
    caption that it copies. The first candidate, beam search's best, may be a copy.

    Args:
        utility: compares captions.
        method: `mbr` for the mean CIDEr-D against the other candidates (a caption that occurs several times counts as
            often), `consensus` for the weighted mean against the references, `both` for their sum. Each of the two is
            scaled so that the picture's best candidate has 1.
        candidates: what to choose among.
        likelihood: weight of a candidate's log-probability, which is added to its agreement.
    """
    texts = list(dict.fromkeys(candidates.texts))
    scores = np.zeros(len(texts))
    if method in ("mbr", "both") and len(candidates.texts) > 1:
        times = np.array([candidates.texts.count(text) for text in texts])
        between = utility.between(texts, texts)
        scores += _scaled(between @ times - between.diagonal())
    if method in ("consensus", "both") and candidates.references:
        scores += _scaled(utility.between(texts, candidates.references) @ candidates.weights)
    if likelihood:
        first = [candidates.texts.index(text) for text in texts]
        scores += likelihood * candidates.log_probabilities[first].round(_DIGITS)
    copied = np.array([i > 0 and utility.is_copied(text) for i, text in enumerate(texts)], dtype=bool)
    return [texts[i] for i in np.lexsort((-scores.round(9), copied))]


def _scaled(scores: Floats) -> Floats:
    highest = scores.max(initial=0)
    return scores / highest if highest > 0 else scores


def _places(lengths: Integers) -> Iterator[tuple[int, Integers, Integers]]:
    """Yield n - 1 for n = 1 .. 4, the first word of each n-gram in the text, and the index of its caption."""
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(caption))  # words up to the end of the caption
    for n in range(MAX_N):
        place = np.flatnonzero(left > n)
        yield n, place, caption[place]


def _keys(shorter: Integers, numbers: Integers, place: Integers, n: int, words: int) -> Integers:
    """Return the key of the n-gram at each place: its last word, and the number of the n-gram before that word."""
    return shorter[place] * words + numbers[place + n] if n else numbers[place]
