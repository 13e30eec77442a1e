from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoProcessor

from pipeline.models.factory import load
from pipeline.models.weights import weights_hash
from pipeline.runtime.atomic_files import read_json, write_json
from pipeline.synthetic import pretrain


def make(folder: Path, *more: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain", str(folder), "--steps", "12", "--scenes", "20", *more])
        pretrain.main()
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose card also has the figures of another seed."""
    other = tmp_path_factory.mktemp("other")
    figures = {"scenes": 20, "named": 0.123, "named_of_one": 0.2, "named_of_two": 0.1, "plain": 0.05}
    write_json(other / "training.json", {"seen_combinations": figures, "unseen_combinations": figures})
    return make(tmp_path_factory.mktemp("made") / "git-demo", "--seed", "1", "--compare", str(other))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_checkpoint_and_another_seed_another(made: Path, tmp_path: Path) -> None:
    again, other = (make(tmp_path / name, "--seed", seed) for name, seed in (("again", "1"), ("other", "2")))
    assert weights_hash(made) == weights_hash(again)
    assert weights_hash(made) != weights_hash(other)


def test_the_checkpoint_loads_with_stock_transformers_and_its_card_has_the_figures(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    assert 1e6 < model.num_parameters() < 3e6
    assert AutoProcessor.from_pretrained(made).tokenizer.model_max_length == pretrain.MAX_TOKENS
    assert sum(file.stat().st_size for file in made.iterdir()) < 8e6
    card = (made / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    named = read_json(made / "training.json")["unseen_combinations"]["named"]
    assert f"| every colour and object named | unseen | {100 * named:.1f} % | 12.3 % |" in card
    assert "{" not in card


def test_the_tokenizer_spells_new_words_and_round_trips_the_samples_captions(made: Path) -> None:
    tokenizer = load(made).tokenizer
    for text in (
        "quokka 42, zebra!",
        "can't find it: a #sunset",
        "tiny red boat by the sea \N{WATER WAVE}\N{WATER WAVE} #beachlife #saltyhair",
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        spaced = text.replace("\N{WATER WAVE}\N{WATER WAVE}", "\N{WATER WAVE} \N{WATER WAVE}")
        assert tokenizer.decode(ids, skip_special_tokens=True) == spaced
