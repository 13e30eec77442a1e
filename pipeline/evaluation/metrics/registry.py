"""The table of metrics. Reports, the `score` table, bootstrap intervals and the promotion gate take their list from it.

To add a metric, write a function from a `Corpus` to one score per picture and add a row to `METRICS`. Its corpus score
is then the mean over the pictures. A metric that pools counts over the corpus, as BLEU does, also needs `from_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.evaluation.metrics import bleu, cider, rouge_l
from pipeline.evaluation.metrics.corpus import Corpus, Floats, Numbers


@dataclass(frozen=True)
class Metric:
    """How to compute one score, or several that share their counts.

    Attributes:
        per_picture: Return the score of each picture, (pictures,); with `from_sums` the counts, (pictures, counts).
        from_sums: Return (corpora, scores) from counts that are summed over each corpus, (corpora, counts).
        names: the names of the scores, if not the name in `METRICS`.
        note: a remark for the table of scores.
    """

    per_picture: Callable[[Corpus], Numbers]
    from_sums: Callable[[Numbers], Floats] | None = None
    names: tuple[str, ...] = ()
    note: str = ""


METRICS: dict[str, Metric] = {
    "BLEU": Metric(bleu.counts, bleu.from_sums, names=bleu.NAMES),
    "ROUGE-L": Metric(rouge_l.per_picture),
    "CIDEr-D": Metric(cider.cider_d_per_picture, note="called CIDEr by coco-caption"),
    "CIDEr": Metric(cider.cider_per_picture, note="as in the paper: no clipping, no length penalty"),
}


def score_names() -> tuple[str, ...]:
    """Return the names of all scores: BLEU-1 .. BLEU-4, ROUGE-L, and so on."""
    return tuple(score for name, metric in METRICS.items() for score in metric.names or (name,))


def names_of_means() -> tuple[str, ...]:
    """Return the names of the scores that are means over the pictures, so that each picture has its own."""
    return tuple(score for name, m in METRICS.items() if m.from_sums is None for score in m.names or (name,))


def notes() -> dict[str, str]:
    """Return the remarks by the names of the scores."""
    return {score: m.note for name, m in METRICS.items() for score in m.names or (name,) if m.note}
