"""The model card (Markdown) of a registered version: what it is, its scores, where it came from, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tracking import registry


def render(name: str, training: Mapping[str, Any], evaluation: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return the card.

    Args:
        name: the registered model.
        training: content of the checkpoint's training.json.
        evaluation: content of reports/evaluate.json.
        tags: provenance of the version.
    """
    systems = {system: scores for system, scores in evaluation.items() if isinstance(scores, dict)}
    names = list(systems["model"]["intervals_95"])
    table = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for system, scores in systems.items():
        table.append(f"| {system.replace('_', ' ')} | {' | '.join(_score(scores, n) for n in names)} |")
    facts = "\n".join(f"* `{key}`: {value}" for key, value in tags.items() if key != "params")
    return f"""# {name}

An image captioning model, fine-tuned from `{training["checkpoint"]}` for up to {training["params"]["epochs"]} epochs.
These are the weights of epoch {training["best_epoch"]}, the best on the validation pictures.

## Scores

On {evaluation["pictures"]} pictures of the test split with {evaluation["references"]} reference captions:

{chr(10).join(table)}

In parentheses: 95 % confidence intervals (bootstrap over the pictures). Tokenizer: {evaluation["tokenizer"]}.

## Provenance

{facts}

`{registry.TRAINED_ON}` lists the SHA-256 and the perceptual hash of every training picture.

## Use

Send a picture's bytes, base64 or a data: URL in the column `image`. The answer has a `caption`, or the reason for a
failure in `error`. Captions resemble the training captions and may say wrong or offensive things about people: review
them before you publish them.
"""


def _score(scores: Mapping[str, Any], name: str) -> str:
    """Return a score with its 95 % interval."""
    low, high = scores["intervals_95"][name]
    return f"{scores[name]:.3f} ({low:.2f} to {high:.2f})"
