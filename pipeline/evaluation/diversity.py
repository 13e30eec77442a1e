"""Figures beyond overlap with references: diversity, copying, length, content words, emoji, hashtags and fluency.

Pure functions of captions: as text where characters matter, otherwise as words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain
from typing import TypeVar

import numpy as np

from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.content_words import are_english, content_words
from pipeline.evaluation.fluency import Endings, loop_share
from pipeline.evaluation.metrics.cider import cider
from pipeline.evaluation.metrics.corpus import Integers, Words
from pipeline.evaluation.metrics.registry import names_of_means
from pipeline.evaluation.metrics.scoring import corpus_scores, statistics

Caption = TypeVar("Caption", str, Words)

# A tag has a letter in it: "#1" is a rank.
_HASHTAG = re.compile(r"[#\uff03](\w*[^\W\d_]\w*)")
_PLAIN = str.maketrans("", "", "\ufe0e\ufe0f")  # an emoji is the same with and without its variation selector

# One caption per picture --------------------------------------------------------------------------------------------


def wording(
    captions: Sequence[str], references: Sequence[Sequence[str]], training: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Return all figures for one caption per picture, by their names; None if there is nothing to count.

    Args:
        captions: one per picture.
        references: one or more per picture; their language decides the tokenizer.
        training: all training captions; without them, `unknown_words`, `copied` and `unfinished` are left out.
    """
    tokenizer = tokenizer_for(references)
    words = [tokenizer.words(caption) for caption in captions]
    figures: dict[str, float | None] = {
        "distinct-1": distinct(words, 1),
        "distinct-2": distinct(words, 2),
        "distinct_captions": distinct_captions(words),
        "words": mean_length(words),
        "emoji_recall": recall(captions, references, emoji_of),
        "hashtag_recall": recall(captions, references, hashtags_of),
        "content_recall": _content_recall(
            words, [[tokenizer.words(text) for text in several] for several in references]
        ),
        "loops": loop_share(words),
    }
    if training is not None:
        learned = [tokenizer.words(caption) for caption in training]
        figures["unknown_words"] = unknown_share(words, set(chain.from_iterable(learned)).__contains__)
        figures["copied"] = copied_share(words, learned)
        figures["unfinished"] = Endings(learned).unfinished_share(words)
    return figures


def distinct(captions: Sequence[Words], n: int) -> float:
    """Return distinct n-grams / all n-grams of all captions (Li et al., NAACL 2016); 0 without n-grams."""
    grams = [tuple(words[i : i + n]) for words in captions for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def distinct_captions(captions: Sequence[Words]) -> float:
    """Return distinct captions / all captions."""
    return len({tuple(words) for words in captions}) / max(1, len(captions))


def mean_length(captions: Sequence[Words]) -> float:
    """Return the mean number of words per caption."""
    return sum(map(len, captions)) / max(1, len(captions))


def unknown_share(captions: Sequence[Words], known: Callable[[str], bool]) -> float:
    """Return the share of all words that are unknown."""
    words = list(chain.from_iterable(captions))
    return sum(not known(word) for word in words) / max(1, len(words))


def copied_share(captions: Sequence[Words], training: Iterable[Words]) -> float:
    """Return the share of captions that equal a training caption word for word; empty captions copy nothing."""
    learned = {tuple(words) for words in training}
    return sum(bool(words) and tuple(words) in learned for words in captions) / max(1, len(captions))


def emoji_of(text: str) -> set[str]:
    """Return the emoji in a text, except the signs ©, ® and ™."""
    if text.isascii():
        return set()
    import emoji  # loads a large table, so only for texts that may have emoji

    return {found["emoji"].translate(_PLAIN) for found in emoji.emoji_list(text)} - set("©®™")


def hashtags_of(text: str) -> set[str]:
    """Return the hashtags in a text, in lower case, without #."""
    return {tag.lower() for tag in _HASHTAG.findall(text)}


def _content_recall(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float | None:
    """Return the mean recall of a reference's content words; None if the references are not in English."""
    return recall(captions, references, content_words) if are_english(chain.from_iterable(references)) else None


def recall(
    captions: Sequence[Caption], references: Sequence[Sequence[Caption]], of: Callable[[Caption], Set[str]]
) -> float | None:
    """Return the mean recall of a reference's items, like emoji, in the caption; None if no reference has any.

    Pictures without such a reference are skipped; if several references have items, the best recall counts.

    Args:
        captions: one per picture.
        references: one or more per picture.
        of: returns the items in a caption, like `emoji_of`.
    """
    recalls = []
    for caption, several in zip(captions, references, strict=True):
        items = of(caption)
        shares = [len(items & wanted) / len(wanted) for wanted in map(of, several) if wanted]
        if shares:
            recalls.append(max(shares))
    return math.fsum(recalls) / len(recalls) if recalls else None


# Several captions per picture ---------------------------------------------------------------------------------------


def best_of(several: Sequence[Sequence[Words]], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """Return for each metric that scores single pictures the best score of each picture's captions, averaged.

    Args:
        several: one or more captions per picture.
        references: one or more per picture.
    """
    captions = list(chain.from_iterable(several))
    repeated = [refs for mine, refs in zip(several, references, strict=True) for _ in mine]
    each = statistics(captions, repeated, idf_from=references).each()
    lengths = np.array([*map(len, several)], dtype=np.int64)
    starts: Integers = np.cumsum(lengths) - lengths
    return {name: float(np.maximum.reduceat(each[name], starts).mean()) for name in names_of_means()}


def self_cider(several: Sequence[Sequence[Words]], idf_from: Sequence[Sequence[Words]]) -> list[float]:
    """Return how much the captions of each picture differ, 0 to 1 (Wang and Chan, CVPR 2019).

    The value is -log_k(sqrt(max l) / sum(sqrt(l))), where l are the eigenvalues of the k x k matrix of CIDEr between
    the captions: 0 if all are the same, 1 if they have nothing in common.

    Args:
        several: two or more captions per picture.
        idf_from: the references that set how rare an n-gram is.

    Raises:
        ValueError: a picture has fewer than two captions.
    """
    if any(len(captions) < 2 for captions in several):
        raise ValueError("needs two or more captions per picture")
    pairs = [(one, [other]) for captions in several for one in captions for other in captions]
    similar = np.array(cider([one for one, _ in pairs], [other for _, other in pairs], idf_from))
    values, first = [], 0
    for captions in several:
        k = len(captions)
        kernel = similar[first : first + k * k].reshape(k, k)
        first += k * k
        roots = np.sqrt(np.maximum(np.linalg.eigvalsh((kernel + kernel.T) / 2), 0))
        values.append(float(-np.log(roots.max() / roots.sum()) / math.log(k)) if roots.any() else 0.0)
    return values


def mutual_bleu(several: Sequence[Sequence[Words]]) -> float:
    """Return BLEU-4 between the captions of a picture (mBLEU; Shetty et al., ICCV 2017); lower is more diverse.

    The mean over k corpora: the k-th captions of all pictures, with the other captions as references.

    Args:
        several: two or more captions per picture.

    Raises:
        ValueError: no picture has two captions.
    """
    scores = []
    for k in range(max(map(len, several), default=0)):
        chosen = [captions for captions in several if len(captions) > max(k, 1)]
        candidates, others = [c[k] for c in chosen], [[*c[:k], *c[k + 1 :]] for c in chosen]
        if chosen:
            scores.append(corpus_scores(candidates, others)["BLEU-4"])
    if not scores:
        raise ValueError("needs a picture with two or more captions")
    return math.fsum(scores) / len(scores)


def most_different(captions: Sequence[str], count: int) -> list[int]:
    """Return the indices of `count` captions that share few words with each other.

    The first caption is always chosen. Then, each time, it is the one that shares the fewest words with any chosen one,
    by the Jaccard index. Equal ones are chosen in order.
    """
    tokenizer = tokenizer_for([captions])
    words = [set(tokenizer.words(caption)) for caption in captions]
    overlap = [-1.0] * len(captions)
    chosen: list[int] = []
    while len(chosen) < min(count, len(captions)):
        best = min((i for i in range(len(captions)) if i not in chosen), key=overlap.__getitem__)
        chosen.append(best)
        for i, mine in enumerate(words):
            overlap[i] = max(overlap[i], len(mine & words[best]) / max(1, len(mine | words[best])))
    return chosen
