"""BLEU-1..4, ROUGE-L and CIDEr-D of tokenized captions, as coco-caption computes them.

Written from the papers and from coco-caption's measured behaviour; the tests hold the results against its
published scores. A *corpus* is one candidate a picture and the references of that picture:
`candidates[i]` is a list of words, `references[i]` a list of such lists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]
Ngram = tuple[str, ...]

MAX_N = 4


def score(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """All metrics of a corpus: `BLEU-1` .. `BLEU-4`, `ROUGE-L` (0 to 1) and `CIDEr-D` (0 to 10).

    Raises:
        ValueError: no pictures, lengths that differ, or a picture without a reference.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError("needs at least one picture, a candidate each, and a reference or more each")
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu(candidates, references), start=1)}
    scores["ROUGE-L"] = _mean(rouge_l(c, r) for c, r in zip(candidates, references, strict=True))
    scores["CIDEr-D"] = _mean(cider_d(candidates, references))
    return scores


def _mean(values: object) -> float:
    listed = list(values)  # type: ignore[call-overload]
    return math.fsum(listed) / len(listed)


def ngrams(words: Words) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 with the closest reference length (Papineni et al., ACL 2002).

    coco-caption adds 1e-15 to matches and 1e-9 to totals, which gives a corpus without a match a tiny
    score instead of none.
    """
    matches, totals = [0] * MAX_N, [0] * MAX_N
    length = reference_length = 0
    for words, refs in zip(candidates, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        allowed: Counter[Ngram] = Counter()
        for ref in refs:
            allowed |= ngrams(ref)
        for gram, count in ngrams(words).items():
            matches[len(gram) - 1] += min(count, allowed[gram])
        for n in range(MAX_N):
            totals[n] += max(0, len(words) - n)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
    scores, product = [], 1.0
    for n in range(MAX_N):
        product *= (matches[n] + 1e-15) / (totals[n] + 1e-9)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def rouge_l(candidate: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """ROUGE-L of one picture: F-measure of the longest common subsequence (Lin, ACL workshop 2004).

    As in coco-caption, precision and recall are each the best over the references.
    """
    common = [_common_subsequence(candidate, ref) for ref in references]
    precision = max(c / len(candidate) if candidate else 0.0 for c in common)
    recall = max(c / len(ref) if ref else 0.0 for c, ref in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_subsequence(first: Words, second: Words) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D a picture, 0 to 10 (Vedantam, Zitnick and Parikh, CVPR 2015).

    An n-gram weighs its count times ln(pictures / pictures whose references have it). The candidate's
    counts are clipped to the reference's, and a Gaussian of the difference in length (`sigma`, words) makes
    captions that repeat themselves score low. With one picture every weight is ln 1 = 0, and so is the score.
    """
    counted = [[ngrams(ref) for ref in refs] for refs in references]
    document_frequency = Counter(gram for refs in counted for gram in set().union(*refs))
    log_pictures = math.log(len(references))

    def weigh(counts: Counter[Ngram]) -> tuple[dict[Ngram, float], list[float], int]:
        weights = {g: c * (log_pictures - math.log(max(1, document_frequency[g]))) for g, c in counts.items()}
        squares = [0.0] * MAX_N
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        # coco-caption takes a caption's number of bigrams for its length.
        return weights, [math.sqrt(s) for s in squares], sum(c for g, c in counts.items() if len(g) == 2)

    scores = []
    for words, refs in zip(candidates, counted, strict=True):
        mine, my_norms, my_length = weigh(ngrams(words))
        total = 0.0
        for theirs, norms, length in map(weigh, refs):
            products = [0.0] * MAX_N
            for gram, weight in mine.items():
                if (other := theirs.get(gram)) is not None:
                    products[len(gram) - 1] += min(weight, other) * other
            penalty = math.exp(-((my_length - length) ** 2) / (2 * sigma**2))
            for n in range(MAX_N):
                if my_norms[n] and norms[n]:
                    total += penalty * products[n] / (my_norms[n] * norms[n])
        scores.append(10 * total / (MAX_N * len(refs)))
    return scores
