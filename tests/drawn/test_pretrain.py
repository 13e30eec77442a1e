from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoProcessor

from pipeline.drawn import pretrain
from pipeline.files import read_json, write_json
from pipeline.model.checkpoint import load
from pipeline.model.weights import weights_hash


def make(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", str(folder), "--steps", "12", "--scenes", "20", *more])
    pretrain.main()


def test_the_same_seed_makes_the_same_checkpoint_and_another_seed_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        make(monkeypatch, tmp_path / name, "--seed", seed)
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "again")
    assert weights_hash(tmp_path / "one") != weights_hash(tmp_path / "other")


def test_the_checkpoint_is_a_plain_one_with_a_card_that_holds_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "git-demo", tmp_path / "other"
    other.mkdir()
    figures = {"scenes": 20, "named": 0.123, "named_of_one": 0.2, "named_of_two": 0.1, "plain": 0.05}
    write_json(other / "training.json", {"seen_combinations": figures, "unseen_combinations": figures})
    make(monkeypatch, folder, "--beside", str(other))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 1e6 < model.num_parameters() < 3e6
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == pretrain.MAX_TOKENS
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    named = read_json(folder / "training.json")["unseen_combinations"]["named"]
    assert f"| every colour and thing named | unseen | {100 * named:.1f} % | 12.3 % |" in card
    assert "{" not in card


def test_the_tokenizer_spells_what_it_never_saw_and_gives_voices_back_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(monkeypatch, tmp_path / "git-demo")
    tokenizer = load(tmp_path / "git-demo").tokenizer
    for text in (
        "quokka 42, zebra!",
        "can't find it: a #sunset",
        "tiny red boat by the sea \N{WATER WAVE}\N{WATER WAVE} #beachlife #saltyhair",
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        spaced = text.replace("\N{WATER WAVE}\N{WATER WAVE}", "\N{WATER WAVE} \N{WATER WAVE}")
        assert tokenizer.decode(ids, skip_special_tokens=True) == spaced
