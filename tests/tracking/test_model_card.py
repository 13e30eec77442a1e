from __future__ import annotations

from pipeline.tracking import model_card


def test_the_card_has_every_score_with_its_interval_and_the_provenance() -> None:
    training = {"checkpoint": "models/git-demo", "params": {"epochs": 8}, "best_epoch": 5}
    evaluation = {
        "model": {"CIDEr-D": 1.25, "New": 0.5, "intervals_95": {"CIDEr-D": [1.1, 1.4], "New": [0.4, 0.6]}},
        "most_frequent": {"CIDEr-D": 0.1, "New": 0.2, "intervals_95": {"CIDEr-D": [0, 0.2], "New": [0.1, 0.3]}},
        "pictures": 120,
        "references": 600,
        "tokenizer": "Penn Treebank",
    }
    card = model_card.render("image-captioning", training, evaluation, {"git.commit": "abc", "params": "{}"})
    assert "fine-tuned from `models/git-demo` for up to 8 epochs" in card
    assert "weights of epoch 5" in card
    assert "| | CIDEr-D | New |" in card
    assert "| model | 1.250 (1.10 to 1.40) | 0.500 (0.40 to 0.60) |" in card
    assert "| most frequent | 0.100 (0.00 to 0.20) | 0.200 (0.10 to 0.30) |" in card
    assert "* `git.commit`: abc" in card
    assert "`params`" not in card
