"""What overlap with references does not tell: whether captions repeat themselves, copy, have emoji, differ.

Pure functions of captions: as texts where letters matter, else as their words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain

import numpy as np

from pipeline.evaluation.metrics.cider import cider
from pipeline.evaluation.metrics.corpus import Integers, Words
from pipeline.evaluation.metrics.scoring import corpus_scores, statistics
from pipeline.evaluation.ptb.tokens import ptb_tokenize

# A tag has a letter in it: "#1" is a rank.
_HASHTAG = re.compile(r"[#\uff03](\w*[^\W\d_]\w*)")
_PLAIN = str.maketrans("", "", "\ufe0e\ufe0f")  # an emoji is the same with and without its variation selector

# Of one caption a picture --------------------------------------------------------------------------------------------


def wording(
    captions: Sequence[str], references: Sequence[Sequence[str]], training: Sequence[str] | None = None
) -> dict[str, float | None]:
    """All figures of one caption a picture, by their names; None where there is nothing to count.

    Args:
        captions: one of each picture.
        references: of each picture, one or more.
        training: all captions that the model was trained on; without them two figures are left out.
    """
    words = [ptb_tokenize(caption) for caption in captions]
    figures: dict[str, float | None] = {
        "distinct-1": distinct(words, 1),
        "distinct-2": distinct(words, 2),
        "distinct_captions": distinct_captions(words),
        "words": mean_length(words),
        "emoji_recall": recall(captions, references, emoji_of),
        "hashtag_recall": recall(captions, references, hashtags_of),
    }
    if training is not None:
        learned = [ptb_tokenize(caption) for caption in training]
        figures["unknown_words"] = unknown_share(words, set(chain.from_iterable(learned)).__contains__)
        figures["copied"] = copied_share(words, learned)
    return figures


def distinct(captions: Sequence[Words], n: int) -> float:
    """Different n-grams over all n-grams of all captions (Li et al., NAACL 2016); 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in captions for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def distinct_captions(captions: Sequence[Words]) -> float:
    """Different captions over all captions."""
    return len({tuple(words) for words in captions}) / max(1, len(captions))


def mean_length(captions: Sequence[Words]) -> float:
    """Words a caption."""
    return sum(map(len, captions)) / max(1, len(captions))


def unknown_share(captions: Sequence[Words], known: Callable[[str], bool]) -> float:
    """The share of all words that are not known."""
    words = list(chain.from_iterable(captions))
    return sum(not known(word) for word in words) / max(1, len(words))


def copied_share(captions: Sequence[Words], training: Iterable[Words]) -> float:
    """The share of captions that are, word for word, a caption of the training; those without a word do not count."""
    learned = {tuple(words) for words in training}
    return sum(bool(words) and tuple(words) in learned for words in captions) / max(1, len(captions))


def emoji_of(text: str) -> set[str]:
    """The emoji in a text, without the signs that people write as letters (©, ®, ™)."""
    if text.isascii():
        return set()
    import emoji  # a big table, so only where there may be one

    return {found["emoji"].translate(_PLAIN) for found in emoji.emoji_list(text)} - set("©®™")


def hashtags_of(text: str) -> set[str]:
    """The hashtags in a text, in lower case, without their #."""
    return {tag.lower() for tag in _HASHTAG.findall(text)}


def recall(captions: Sequence[str], references: Sequence[Sequence[str]], of: Callable[[str], Set[str]]) -> float | None:
    """How much of what a reference has of some kind its caption has too; None where no reference has any.

    A mean over the pictures of which a reference has any; of several such references the best counts.

    Args:
        captions: one of each picture.
        references: of each picture, one or more.
        of: what is looked for in a text, like `emoji_of`.
    """
    found = []
    for caption, several in zip(captions, references, strict=True):
        said = of(caption)
        shares = [len(said & wanted) / len(wanted) for wanted in map(of, several) if wanted]
        if shares:
            found.append(max(shares))
    return math.fsum(found) / len(found) if found else None


# Of several captions a picture ---------------------------------------------------------------------------------------


def best_of(several: Sequence[Sequence[Words]], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """Means over pictures of the best that one of its captions scores: `ROUGE-L`, `CIDEr-D` and `CIDEr`.

    Args:
        several: the captions of each picture, one or more.
        references: of each picture, one or more.
    """
    said = list(chain.from_iterable(several))
    people = [of_it for captions, of_it in zip(several, references, strict=True) for _ in captions]
    each = statistics(said, people, idf_from=references).each()
    lengths = np.array([len(captions) for captions in several], dtype=np.int64)
    starts: Integers = np.cumsum(lengths) - lengths
    return {name: float(np.maximum.reduceat(each[name], starts).mean()) for name in ("ROUGE-L", "CIDEr-D", "CIDEr")}


def self_cider(several: Sequence[Sequence[Words]], idf_from: Sequence[Sequence[Words]]) -> list[float]:
    """How much the captions of each picture differ, 0 to 1 (Wang and Chan, CVPR 2019).

    With the k x k kernel of CIDEr between the captions of a picture, and its eigenvalues l, it is
    -log_k(sqrt(max l) / sum(sqrt(l))): 0 where all are the same, 1 where none has anything in common.

    Args:
        several: the captions of each picture, two or more.
        idf_from: the references of the pictures that tell how rare n-grams are.

    Raises:
        ValueError: a picture has fewer than two captions.
    """
    if any(len(captions) < 2 for captions in several):
        raise ValueError("needs two captions or more of each picture")
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
    """BLEU-4 of each picture's captions against its others (mBLEU; Shetty et al., ICCV 2017): lower differs more.

    The mean of k corpora: the first captions of all pictures against the others, the second, and so on.

    Args:
        several: the captions of each picture, two or more.

    Raises:
        ValueError: no picture has two captions.
    """
    scores = []
    for k in range(max(map(len, several), default=0)):
        chosen = [captions for captions in several if len(captions) > max(k, 1)]
        said, others = [c[k] for c in chosen], [[*c[:k], *c[k + 1 :]] for c in chosen]
        if chosen:
            scores.append(corpus_scores(said, others)["BLEU-4"])
    if not scores:
        raise ValueError("needs two captions or more of a picture")
    return math.fsum(scores) / len(scores)
