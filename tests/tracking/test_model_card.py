from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.tracking import decision, model_card, registry
from pipeline.tracking.model_card import Sample
from tests.conftest import jpeg

TRAINING = {"checkpoint": "models/git-demo", "params": {"epochs": 8}, "best_epoch": 5}
SAMPLES = [
    Sample(jpeg(), "a red kite", "a kite above the sea"),
    Sample(jpeg("blue"), "", "two | boats & <b>*here*</b>"),
]


def evaluation() -> dict[str, Any]:
    return {
        "model": {"CIDEr-D": 1.25, "New": 0.5, "intervals_95": {"CIDEr-D": [1.1, 1.4], "New": [0.4, 0.6]}},
        "before_finetuning": {
            **{"CIDEr-D": 1.75, "New": 0.6, "intervals_95": {"CIDEr-D": [1.6, 1.9], "New": [0.5, 0.7]}},
            "model_is_above_by": {"CIDEr-D": [-0.5, -0.7, -0.2]},
        },
        "most_frequent": {
            **{"CIDEr-D": 0.1, "New": 0.2, "intervals_95": {"CIDEr-D": [0, 0.2], "New": [0.1, 0.3]}},
            "model_is_above_by": {"CIDEr-D": [1.15, 1.0, 1.3]},
        },
        "pictures": 120,
        "references": 600,
        "tokenizer": "Penn Treebank",
    }


def card(tags: dict[str, str] | None = None, samples: list[Sample] | None = None) -> str:
    tags = {"git.commit": "abc", "params": "{}"} if tags is None else tags
    return model_card.render("image-captioning", TRAINING, evaluation(), tags, SAMPLES if samples is None else samples)


def test_the_card_has_every_score_with_its_interval_and_the_provenance() -> None:
    text = card()
    assert "fine-tuned from `models/git-demo` for up to 8 epochs" in text
    assert "weights of epoch 5" in text
    assert "| | CIDEr-D | New |" in text
    assert "| model | 1.250 (1.10 to 1.40) | 0.500 (0.40 to 0.60) |" in text
    assert "| most frequent | 0.100 (0.00 to 0.20) | 0.200 (0.10 to 0.30) |" in text
    assert "* `git.commit`: abc" in text
    assert "`params`" not in text


def test_the_card_has_the_licence_of_weights_from_elsewhere() -> None:
    assert "Contains weights" not in card()
    training = {**TRAINING, "notice": "EfficientNet-lite0: Apache-2.0 |\n# <b>"}
    text = model_card.render("image-captioning", training, evaluation(), {}, [])
    assert "Contains weights of: EfficientNet-lite0: Apache-2.0 &#124; # &lt;b&gt;." in text


def test_the_card_says_whether_the_model_is_worse_than_what_it_has_to_beat() -> None:
    text = card()
    assert "**Worse than before fine-tuning (-0.500 CIDEr-D, 95 % interval -0.700 to -0.200)**" in text
    assert "* Better than the naive answers (+1.150 CIDEr-D, 95 % interval +1.000 to +1.300)" in text


def test_the_card_shows_pictures_that_lie_beside_it_with_both_captions(tmp_path: Path) -> None:
    artifacts = model_card.write(tmp_path, "CARD.md", card(), SAMPLES)
    text = artifacts["card"].read_text(encoding="utf-8")
    assert "| ![1](samples/1.jpg) | a red kite | a kite above the sea |" in text
    assert (tmp_path / "samples/1.jpg").read_bytes() == SAMPLES[0].picture
    assert sorted(path.name for path in artifacts["samples"].iterdir()) == ["1.jpg", "2.jpg"]


def test_captions_of_strangers_are_no_markup_in_the_card() -> None:
    assert r"| (nothing) | two &#124; boats &amp; &lt;b&gt;\*here\*&lt;/b&gt; |" in card()
    odd = Sample(jpeg(), "one\n\n# two", "[click](javascript:x) " + "long " * 100)
    (row,) = [line for line in card(samples=[odd]).splitlines() if line.startswith("| ![1]")]
    assert r"| one # two | \[click\](javascript:x) long long" in row
    assert row.endswith("... |")


def test_the_description_has_the_last_decision_once_and_keeps_the_rest() -> None:
    first = model_card.description(card(), {})
    assert "Not decided yet" in first
    assert "| `samples/1.jpg` | a red kite |" in first  # MLflow shows no pictures there
    tags = {decision.DECISION: "kept", decision.REASONS: "worse than before", decision.AT: "2026-11-26T10:00:00+00:00"}
    refused = model_card.description(first, tags)
    assert "**Refused; there is no champion** (2026-11-26T10:00:00+00:00).\n\nReasons: worse than before." in refused
    assert "Not decided yet" not in refused
    tags |= {decision.DECISION: "promoted", decision.AGAINST: "3", registry.ROLLED_BACK: "2026-11-27"}
    promoted = model_card.description(refused, tags)
    assert "**Promoted in place of version 3**" in promoted
    assert "**Rolled back** (2026-11-27)" in promoted
    assert "Refused" not in promoted
    assert promoted.count("## Promotion") == 1
    for text in (refused, promoted):
        for part in ("## Scores", "## Samples", "## Use", "* `git.commit`: abc"):
            assert text.count(part) == 1


def test_a_version_without_a_card_gets_the_decision_as_its_description() -> None:
    text = model_card.description("", {decision.DECISION: "first", decision.REASONS: "there is no champion yet"})
    assert text.startswith("## Promotion\n\n**Promoted as the first champion**")
    assert model_card.description(text, {}).count("## Promotion") == 1


def test_a_description_fits_into_the_databases_of_mlflow() -> None:
    many = {f"dvc.raw.source_{n}": "0" * 64 for n in range(100)}
    text = model_card.description(card(many, [Sample(jpeg(), "*" * 500, "*" * 500)] * 6), {})
    assert len(text) <= 5000
    assert text.endswith("(Shortened. The version's artifacts have the whole card.)\n")
    assert "## Promotion" in text
