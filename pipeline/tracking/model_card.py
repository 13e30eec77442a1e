"""The model card (Markdown) of a registered version: what it is, its verdict and scores, samples, origin and use."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking import decision, registry
from pipeline.tracking.comparison import comparisons

SAMPLES = "samples"  # the folder of the samples' pictures, beside the card
SHOWN = 6  # sample pictures
_METRIC = "CIDEr-D"
_CAPTION = 150  # characters of a caption in the card
_DESCRIPTION = 5000  # characters that MLflow's databases store of a description
_PROMOTION = "## Promotion\n"
_SCORES = "## Scores\n"
_SPECIAL = re.compile(r"([\\`*_\[\]~])")


@dataclass(frozen=True)
class Sample:
    """A test picture and its captions.

    Attributes:
        picture: a JPEG.
        model: the model's caption.
        person: a reference.
    """

    picture: bytes
    model: str
    person: str


def render(
    name: str,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    tags: Mapping[str, str],
    samples: Sequence[Sample],
) -> str:
    """Return the card; `write` also writes the pictures that it shows.

    Args:
        name: the registered model.
        training: content of the checkpoint's training.json.
        evaluation: content of reports/evaluate.json.
        tags: provenance of the version.
        samples: test pictures with their captions.
    """
    systems = {system: scores for system, scores in evaluation.items() if isinstance(scores, dict)}
    names = list(systems["model"]["intervals_95"])
    table = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for system, scores in systems.items():
        table.append(f"| {system.replace('_', ' ')} | {' | '.join(_score(scores, n) for n in names)} |")
    verdicts = "\n".join(f"* {_sentence(str(found))}" for found in comparisons(evaluation, _METRIC))
    epochs = training.get("epochs", training["params"]["epochs"])  # models of earlier releases lack the first
    facts = "\n".join(f"* `{key}`: {value}" for key, value in tags.items() if key != "params")
    notice = f"\n\nContains weights of: {_cell(training['notice'])}." if "notice" in training else ""
    return f"""# {name}

An image captioning model, fine-tuned from `{training["checkpoint"]}` for up to {epochs} epochs.
These are the weights of epoch {training["best_epoch"]}, the best on the validation pictures.{notice}

{verdicts}

{_SCORES}
On {evaluation["pictures"]} pictures of the test split with {evaluation["references"]} reference captions:

{chr(10).join(table)}

In parentheses: 95 % confidence intervals (bootstrap over the pictures). Tokenizer: {evaluation["tokenizer"]}.

## Samples

The first pictures of the test split:

| picture | model | a person |
|---|---|---|
{chr(10).join(_row(number, sample) for number, sample in enumerate(samples, start=1))}

## Use

Send a picture's bytes, base64 or a data: URL in the column `image`. The answer has a `caption`, or the reason for a
failure in `error`. Captions resemble the training captions and may say wrong or offensive things about people: review
them before you publish them.

## Provenance

{facts}

`{registry.TRAINED_ON}` lists the SHA-256 and the perceptual hash of every training picture.
"""


def write(folder: Path, name: str, card: str, samples: Sequence[Sample]) -> dict[str, Path]:
    """Write the card and the pictures of its samples into a folder; return both by their artifact names."""
    pictures = folder / SAMPLES
    pictures.mkdir()
    for number, sample in enumerate(samples, start=1):
        (pictures / f"{number}.jpg").write_bytes(sample.picture)
    (folder / name).write_text(card, encoding="utf-8")
    return {"card": folder / name, SAMPLES: pictures}


def description(card: str, tags: Mapping[str, str]) -> str:
    """Return a card as the description of a registered version: with the decision about it, and short enough.

    MLflow's pages show no pictures in a description, so their numbers stand in the table.

    Args:
        card: a card, or an earlier description.
        tags: the tags of the version, with the decision of `promote`.
    """
    before, found, rest = card.partition(_PROMOTION)
    if found:
        rest = rest[rest.index(_SCORES) :] if _SCORES in rest else ""
    else:
        before, found, rest = card.partition(_SCORES)
        rest = found + rest
    text = f"{before}{_PROMOTION}\n{decision.in_words(tags)}\n\n{rest}"
    text = re.sub(rf"!\[(\d+)\]\({SAMPLES}/\d+\.jpg\)", rf"`{SAMPLES}/\1.jpg`", text)
    if len(text) <= _DESCRIPTION:
        return text
    note = "\n\n(Shortened. The version's artifacts have the whole card.)\n"
    return text[: _DESCRIPTION - len(note)] + note


def _row(number: int, sample: Sample) -> str:
    return f"| ![{number}]({SAMPLES}/{number}.jpg) | {_cell(sample.model)} | {_cell(sample.person)} |"


def _cell(caption: str) -> str:
    """Return a caption for a Markdown table: one line, not too long, and without markup of its own."""
    line = " ".join(caption.split())
    line = line if len(line) <= _CAPTION else f"{line[: _CAPTION - 3].rstrip()}..."
    # MLflow's Markdown knows no backslash before these.
    line = html.escape(_SPECIAL.sub(r"\\\1", line), quote=False).replace("|", "&#124;")
    return line or "(nothing)"


def _sentence(text: str) -> str:
    return f"**{text[0].upper()}{text[1:]}**" if text.startswith("worse") else text[0].upper() + text[1:]


def _score(scores: Mapping[str, Any], name: str) -> str:
    """Return a score with its 95 % interval."""
    low, high = scores["intervals_95"][name]
    return f"{scores[name]:.3f} ({low:.2f} to {high:.2f})"
