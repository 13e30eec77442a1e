"""Whether a model beats the checkpoint before fine-tuning and the naive answers, from the content of evaluate.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.sections.finetune import CREATED
from pipeline.runtime.atomic_files import read_json

# Names of systems in the report; the others are naive answers. `beam_search` is the model with another decoding, and
# `restyled` the checkpoint before fine-tuning in the style of the training captions.
MODEL, BEFORE, BEAM_SEARCH, RESTYLED = "model", "before_finetuning", "beam_search", "restyled"
BEFORE_FINETUNING, NAIVE_ANSWERS = "before fine-tuning", "the naive answers"

_GAINS = "model_is_above_by"


@dataclass(frozen=True)
class Comparison:
    """A model's gain over another system on the same test pictures.

    Attributes:
        over: what the model is compared with: `BEFORE_FINETUNING` or `NAIVE_ANSWERS`.
        metric: name of the score.
        value: the model's score minus the other's.
        low, high: the paired 95 % interval of the gain.
    """

    over: str
    metric: str
    value: float
    low: float
    high: float

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high < 0

    @property
    def verdict(self) -> str:
        """The result in words."""
        outcome = "worse" if self.is_worse else "better" if self.low > 0 else "not clearly better"
        return f"{outcome} than {self.over}"

    def __str__(self) -> str:
        """Return the verdict with the gain and its interval."""
        return f"{self.verdict} ({self.value:+.3f} {self.metric}, 95 % interval {self.low:+.3f} to {self.high:+.3f})"


def comparisons(evaluation: Mapping[str, Any], metric: str) -> list[Comparison]:
    """Compare the model with the checkpoint before fine-tuning and with the best naive answer.

    Other systems of the report are naive answers, except for the architectures of `compare`: a model is not refused
    because another architecture is better.

    Args:
        evaluation: content of evaluate.json.
        metric: name of the score to compare.

    Returns:
        up to two comparisons; none from a report without gains in this metric, as early versions wrote it.
    """
    gains = {
        system: (scores[metric], scores[_GAINS][metric])
        for system, scores in evaluation.items()
        if isinstance(scores, Mapping) and metric in scores and metric in scores.get(_GAINS, {})
        if system not in (*CREATED, BEAM_SEARCH, RESTYLED)
    }
    found = []
    if BEFORE in gains:
        found.append(Comparison(BEFORE_FINETUNING, metric, *gains.pop(BEFORE)[1]))
    if gains:
        _, gain = max(gains.values(), key=lambda entry: entry[0])
        found.append(Comparison(NAIVE_ANSWERS, metric, *gain))
    return found


def comparisons_of_version(store: Any, model: str, number: int, metric: str) -> list[Comparison]:
    """Return the comparisons of a registered version from the evaluate.json of its run; none without that file.

    Raises:
        DataError: the file is damaged.
    """
    run_id = store.get_model_version(model, str(number)).run_id
    name = paths.EVALUATE_REPORT.name
    if not run_id or name not in {file.path for file in store.list_artifacts(run_id)}:
        return []
    with TemporaryDirectory() as folder:
        try:
            evaluation = read_json(Path(store.download_artifacts(run_id, name, folder)))
        except ValueError:
            raise DataError(
                f"models:/{model}/{number}: {name} in its run is damaged; run `make register` in its workspace"
            ) from None
    return comparisons(evaluation, metric)


def verdict(found: Sequence[Comparison]) -> str:
    """Return all verdicts in one phrase, empty if there are none."""
    return ", ".join(comparison.verdict for comparison in found)
