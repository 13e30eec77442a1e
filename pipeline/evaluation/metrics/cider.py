"""CIDEr-D and CIDEr (Vedantam, Zitnick and Parikh, CVPR 2015): cosine similarity of TF-IDF weighted n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.metrics.corpus import MAX_N, Corpus, Floats, Words, count, lookup

SIGMA = 6.0  # words; width of CIDEr-D's length penalty


def cider_d_per_picture(corpus: Corpus) -> Floats:
    """Return CIDEr-D of each picture, (pictures,), 0 to 10."""
    return _per_picture(corpus, clipped=True)


def cider_per_picture(corpus: Corpus) -> Floats:
    """Return CIDEr of each picture, (pictures,), 0 to 10."""
    return _per_picture(corpus, clipped=False)


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> list[float]:
    """Return CIDEr-D of each picture, 0 to 10. coco-caption calls it CIDEr.

    The weight of an n-gram is its count times ln(pictures / pictures with the n-gram in a reference). The candidate's
    counts are clipped to the reference's, and a Gaussian of the length difference (sigma 6 words) penalizes repetition.
    With one picture every weight is ln 1 = 0, and so is the score.

    Args:
        candidates: one caption per picture.
        references: one or more captions per picture.
        idf_from: the references that set the weights; see `corpus.count`.

    Raises:
        ValueError: as `corpus.count`.
    """
    return [float(value) for value in cider_d_per_picture(count(candidates, references, idf_from))]


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> list[float]:
    """Return CIDEr of each picture, 0 to 10: as `cider_d`, without clipping and without the length penalty.

    As in the authors' code, the mean cosine is multiplied by 10. Words are not stemmed.
    """
    return [float(value) for value in cider_per_picture(count(candidates, references, idf_from))]


def _per_picture(corpus: Corpus, clipped: bool) -> Floats:
    pictures, picture = len(corpus.candidate_lengths), corpus.picture
    total = np.zeros(len(picture))  # per reference
    for grams in corpus.grams:
        weights = grams.candidate_counts * grams.idf[grams.candidate_keys % grams.kinds]
        candidate_norm = np.sqrt(np.bincount(grams.candidate_keys // grams.kinds, weights**2, pictures))
        reference_weights = grams.counts * grams.idf[grams.gram]
        norm = np.sqrt(np.bincount(grams.reference, reference_weights**2, len(total))) * candidate_norm[picture]
        matched = lookup(grams.candidate_keys, weights, picture[grams.reference] * grams.kinds + grams.gram)
        products = (np.minimum(matched, reference_weights) if clipped else matched) * reference_weights
        cosine = np.bincount(grams.reference, products, len(total))
        total += np.divide(cosine, norm, out=np.zeros_like(total), where=norm > 0)
    if clipped:
        # coco-caption uses the number of bigrams as the length of a caption.
        bigrams, reference_bigrams = (
            np.maximum(n - 1, 0) for n in (corpus.candidate_lengths, corpus.reference_lengths)
        )
        total *= np.exp(-((bigrams[picture] - reference_bigrams) ** 2) / (2 * SIGMA**2))
    scores: Floats = 10 * np.bincount(picture, total, pictures) / (MAX_N * np.bincount(picture, minlength=pictures))
    return scores
