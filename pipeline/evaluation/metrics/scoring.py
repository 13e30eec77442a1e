"""Candidates and references -> the scores of every registered metric: of the corpus, each picture, and resamples.

The results equal those of coco-caption; the tests compare them with its published scores and with its Python port.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics.corpus import Floats, Integers, Numbers, Words, count
from pipeline.evaluation.metrics.registry import METRICS, score_names


@dataclass(frozen=True)
class Statistics:
    """What each picture contributes to each metric; the scores of any part of a corpus follow from it.

    Attributes:
        contributions: by the names in `METRICS`: (pictures,) scores, or (pictures, counts) of a pooled metric.
    """

    contributions: Mapping[str, Numbers]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(next(iter(self.contributions.values())))

    def scores(self) -> dict[str, float]:
        """Return the scores of the corpus by their names."""
        scores: list[float] = []
        for name, values in self.contributions.items():
            if from_sums := METRICS[name].from_sums:
                scores += map(float, from_sums(values.sum(axis=0, keepdims=True))[0])
            else:
                scores.append(math.fsum(values) / len(values))
        return dict(zip(score_names(), scores, strict=True))

    def each(self) -> dict[str, Numbers]:
        """Return the scores of each picture, (pictures,), by their names; BLEU is that of the picture alone."""
        scores: list[Numbers] = []
        for name, values in self.contributions.items():
            if from_sums := METRICS[name].from_sums:
                scores += list(from_sums(values).T)
            else:
                scores.append(values)
        return dict(zip(score_names(), scores, strict=True))

    def part(self, pictures: Sequence[int] | Integers) -> Statistics:
        """Return the statistics of the pictures at these indices; CIDEr's weights stay those of the whole set."""
        return Statistics({name: values[np.asarray(pictures)] for name, values in self.contributions.items()})

    def resampled(self, times: Integers) -> Floats:
        """Return the scores of resampled corpora, (corpora, scores), in the order of `score_names`.

        Args:
            times: (corpora, pictures) how often each picture is in each corpus.
        """
        weights = times.astype(np.float64)  # exact for counts, and matrix products of floats are fast
        mean_metrics = [name for name in self.contributions if not METRICS[name].from_sums]
        values = np.column_stack([self.contributions[name] for name in mean_metrics])
        means = dict(zip(mean_metrics, (weights @ values / weights.sum(axis=1, keepdims=True)).T, strict=True))
        scores = []
        for name, counts in self.contributions.items():
            from_sums = METRICS[name].from_sums
            scores.append(from_sums(weights @ counts) if from_sums else means[name][:, None])
        return np.concatenate(scores, axis=1)


def statistics(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    idf_from: Sequence[Sequence[Words]] | None = None,
) -> Statistics:
    """Return what each picture contributes to each registered metric.

    Args:
        candidates: one caption per picture.
        references: one or more captions per picture.
        idf_from: the references that set CIDEr's weights; see `corpus.count`.

    Raises:
        ValueError: as `corpus.count`.
    """
    corpus = count(candidates, references, idf_from)
    return Statistics({name: metric.per_picture(corpus) for name, metric in METRICS.items()})


def corpus_scores(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """Return all scores of a corpus: `BLEU-1` .. `BLEU-4`, `ROUGE-L` (0 to 1), `CIDEr-D` and `CIDEr` (0 to 10).

    Raises:
        ValueError: as `corpus.count`.
    """
    return statistics(candidates, references).scores()
