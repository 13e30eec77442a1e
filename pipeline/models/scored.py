"""Captions with their scores, and the choice of a few that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.diversity import most_different


@dataclass(frozen=True)
class Scored:
    """A caption and its mean log-probability per token (nats)."""

    text: str
    score: float


def best(captions: Sequence[Scored], count: int, diverse: bool, first: Sequence[Scored] = ()) -> list[Scored]:
    """Return up to `count` different captions: `first`, then the likeliest, or those that share few words."""
    ranked_by_score = sorted(captions, key=lambda caption: caption.score, reverse=True)
    distinct: dict[str, Scored] = {}
    for caption in (*first, *ranked_by_score):
        distinct.setdefault(caption.text, caption)
    found = list(distinct.values())
    chosen = most_different([caption.text for caption in found], count) if diverse else range(min(count, len(found)))
    return [found[i] for i in chosen]
