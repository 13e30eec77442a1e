"""What `evaluate` reports: captions.jsonl, the scores of all systems in evaluate.json, and those in `dvc metrics`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.data.dataset import Example, read_examples
from pipeline.evaluation.bootstrap import differences, intervals
from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.diversity import mean_length, wording
from pipeline.evaluation.metrics.scoring import Statistics, statistics
from pipeline.evaluation.named_words import Groups, NamedWords
from pipeline.runtime.atomic_files import sha256_of

CLIP_SCORES = ("CLIPScore", "RefCLIPScore")
HEADLINE = "CIDEr-D"  # the score of the last line and of each picture in the gallery
_SHOWN = (HEADLINE, "BLEU-4", "ROUGE-L")  # the model's scores in `dvc metrics`

Captions = dict[str, list[str]]  # one caption per picture, by the name of the system


def lines_of(test: Sequence[Example], captions: Captions) -> Iterator[dict[str, object]]:
    """Yield the lines of captions.jsonl."""
    for i, example in enumerate(test):
        yield {
            "file_name": example.file_name,
            "references": example.captions,
            "captions": {system: texts[i] for system, texts in captions.items()},
        }


def count(captions: Captions, references: Sequence[Sequence[str]]) -> dict[str, Statistics]:
    """Return the statistics of each system, from which its scores follow."""
    tokenizer = tokenizer_for(references)
    words = [[tokenizer.words(reference) for reference in several] for several in references]
    return {system: statistics([tokenizer.words(text) for text in texts], words) for system, texts in captions.items()}


def make_report(
    captions: Captions,
    references: Sequence[Sequence[str]],
    counted: Mapping[str, Statistics],
    model: str,
    groups: Groups,
) -> dict[str, Any]:
    """Return the content of reports/evaluate.json.

    Args:
        captions: of each system.
        references: of the same pictures.
        counted: the statistics of each system.
        model: the system that the others are compared with.
        groups: the words that matter, see `evaluate.named_words`.
    """
    named = NamedWords(groups)
    tokenizer = tokenizer_for(references)
    training_captions = [c for example in read_examples(paths.DATASET / "train") for c in example.captions]
    systems = {
        system: {
            **_system_report(each, captions[system], references, training_captions),
            "named": named.figures(captions[system], references),
        }
        for system, each in counted.items()
    }
    for system in systems.keys() - {model}:
        systems[system]["model_is_above_by"] = _gains(counted[model], counted[system])
    return {
        **systems,
        "pictures": len(references),
        "references": sum(map(len, references)),
        "reference_words": mean_length([tokenizer.words(r) for several in references for r in several]),
        "tokenizer": tokenizer.name,
        "test_sha256": sha256_of(paths.DATASET / "test"),
    }


def _system_report(
    counted: Statistics,
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    training_captions: Sequence[str],
) -> dict[str, Any]:
    """Return the scores, wording figures and intervals of a system (`dvc metrics` skips lists, so the intervals)."""
    ends = {name: [round(end, 4) for end in interval] for name, interval in intervals(counted).items()}
    return {**counted.scores(), **wording(captions, references, training_captions), "intervals_95": ends}


def _gains(model: Statistics, other: Statistics) -> dict[str, list[float]]:
    """Return the model's scores minus another system's: difference, and the ends of its 95 % interval."""
    return {
        name: [round(value, 4) for value in (gain.value, gain.low, gain.high)]
        for name, gain in differences(other, model).items()
    }


def named_table(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the cells of the gallery's table of what captions name, by system and column."""
    return {
        system.replace("_", " "): {
            **{
                group: f"{_percent(figures['precision'])} / {_percent(figures['recall'])}"
                for group, figures in found["named"].items()
            },
            **{name: f"{found[name]:.3f}" for name in CLIP_SCORES if name in found},
            "content recall": _percent(found["content_recall"]),
            "unfinished": _percent(found["unfinished"]),
            "loops": _percent(found["loops"]),
            "copied": _percent(found["copied"]),
        }
        for system, found in report.items()
        if isinstance(found, dict)
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def shown_metrics(report: Mapping[str, Any], model: str, left_out: Sequence[str]) -> dict[str, float]:
    """Return the scores that `dvc metrics` shows: the model's, and the headline score of the other systems."""
    low, high = report[model]["intervals_95"][HEADLINE]
    others = {
        system: scores[HEADLINE]
        for system, scores in report.items()
        if isinstance(scores, dict) and system not in (model, *left_out)
    }
    shown = {name: report[model][name] for name in _SHOWN}
    return {**shown, f"{HEADLINE}_low": low, f"{HEADLINE}_high": high, **others}


def write_scores_csv(path: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write one row per bar of `dvc plots`; its template has one label per bar, so it holds score and system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["bar", "value"])
        for name in next(iter(scores.values())):
            writer.writerows([f"{name} {system}", values[name]] for system, values in scores.items())
