"""The table of architectures: the model and the others trained on the same pictures, their scores and their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEADLINE, _SECOND = "CIDEr-D", "BLEU-4"


@dataclass(frozen=True)
class Row:
    """An architecture in the table.

    Attributes:
        name: of the start.
        cells: its values as text, by the title of their column.
    """

    name: str
    cells: Mapping[str, str]


def rows(report: Mapping[str, Any], model: str, start: str, others: Sequence[str]) -> list[Row]:
    """Return the model and the other architectures, the highest CIDEr-D first.

    Args:
        report: content of evaluate.json, whose systems have a `cost`: `parameters`, `trained_parameters`,
            `training_seconds` (None if unknown) and `captions_per_second`.
        model: the model's name in the report.
        start: what the model started from.
        others: the names of the other architectures in the report.
    """
    ranked = sorted([model, *others], key=lambda system: -report[system][HEADLINE])
    return [Row(f"{start} (the model)" if s == model else s, _cells(report[s])) for s in ranked]


def _cells(scores: Mapping[str, Any]) -> dict[str, str]:
    low, high = scores["intervals_95"][HEADLINE]
    gain = "0"
    if "model_is_above_by" in scores:
        value, lowest, highest = scores["model_is_above_by"][HEADLINE]
        gain = f"{-value:+.3f} ({-highest:+.3f} to {-lowest:+.3f})"
    cost = scores["cost"]
    seconds = cost["training_seconds"]
    return {
        HEADLINE: f"{scores[HEADLINE]:.3f} ({low:.2f} to {high:.2f})",
        f"{HEADLINE} minus the model's": gain,
        _SECOND: f"{scores[_SECOND]:.3f}",
        "parameters": f"{cost['parameters'] / 1e6:.3g} M",
        "trained": f"{cost['trained_parameters'] / 1e6:.3g} M",
        "training, s": "unknown" if seconds is None else f"{seconds:,.0f}",
        "captions/s": f"{cost['captions_per_second']:.3g}",
    }


NOTE = (
    "In parentheses: 95 % confidence intervals; for differences a paired bootstrap over the pictures. If the interval"
    " of a difference contains 0, there is no clear winner. Seconds and captions/s are measured on this machine; other"
    " work on it at the same time distorts them. Training includes validation, but not the encoding of pictures for a"
    " frozen encoder, which happens once. Captioning includes decoding and encoding the pictures."
)


def markdown(table: Sequence[Row]) -> str:
    """Return the table and its note in Markdown."""
    titles = list(table[0].cells)
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    lines += [f"| {row.name} | {' | '.join(row.cells[title] for title in titles)} |" for row in table]
    return "\n".join([*lines, "", NOTE, ""])
