"""BLEU-1 to BLEU-4 (Papineni et al., ACL 2002), with the closest reference length, as in coco-caption."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.metrics.corpus import MAX_N, Corpus, Floats, Grams, Integers, Numbers, first_places, lookup

NAMES = tuple(f"BLEU-{n}" for n in range(1, MAX_N + 1))


def counts(corpus: Corpus) -> Integers:
    """Return what each picture adds to the corpus score, (pictures, 10).

    The columns are: clipped n-gram matches (n = 1 .. 4), n-grams of the candidate (n = 1 .. 4), words of the candidate,
    and words of the reference closest in length (the shorter one on a tie).
    """
    lengths, reference_lengths = corpus.candidate_lengths, corpus.reference_lengths
    # The distance fills the upper bits and the length the lower ones, so the minimum breaks ties by length.
    distances = np.abs(reference_lengths - lengths[corpus.picture]) << 32
    closest = np.minimum.reduceat(distances + reference_lengths, first_places(corpus.picture)) & (2**32 - 1)
    matches = [_matches(grams, len(lengths)) for grams in corpus.grams]
    totals = np.maximum(lengths[:, None] - np.arange(MAX_N), 0)
    return np.column_stack([*matches, totals, lengths, closest])


def from_sums(sums: Numbers) -> Floats:
    """Return BLEU-1 to BLEU-4 of each corpus, (corpora, 4), from the sums of its `counts`, (corpora, 10).

    coco-caption adds 1e-15 to matches and 1e-9 to totals, so a corpus without a match scores slightly above 0.
    """
    matches, totals, lengths, reference_lengths = np.split(sums, [MAX_N, 2 * MAX_N, 2 * MAX_N + 1], axis=1)
    precisions = np.cumprod((matches + 1e-15) / (totals + 1e-9), axis=1)
    ratio = (lengths + 1e-15) / (reference_lengths + 1e-9)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    scores: Floats = precisions ** (1 / np.arange(1, MAX_N + 1)) * brevity
    return scores


def _matches(grams: Grams, pictures: int) -> Integers:
    """Return the matches of each candidate, (pictures,): an n-gram counts at most as often as in one reference."""
    clipped = np.minimum(grams.candidate_counts, lookup(grams.keys, grams.most, grams.candidate_keys))
    return np.bincount(grams.candidate_keys // grams.kinds, clipped, pictures).astype(np.int64)
