"""`finetune.new_tokens`: words that a checkpoint's tokenizer lacks get tokens, and are learned."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pipeline import build, finetune, ingest
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.data.dataset import PictureReader, read_examples
from pipeline.evaluation.diversity import emoji_of, recall
from pipeline.models import factory
from pipeline.models.base import CaptionModel
from pipeline.models.captioner import Captioner
from pipeline.models.new_tokens import choose_new_tokens, known_pieces
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, set_params

GIT_DEMO = ROOT / "models" / "git-demo"
CAPTIONS = [
    "🦄🦄 a quokka #unicornlife",
    "🦄 a zeppelin, a quokka #unicornlife",
    "A Quokka! a red circle 🇫🇷",
    "a zeppelin 狗在 🇫🇷",
    "狗 a wombat",
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(GIT_DEMO / "tokenizer.json"))


def words(tokenizer: Tokenizer, count: int) -> list[str]:
    return [token.content for token in choose_new_tokens(tokenizer, CAPTIONS, count)]


def test_unknown_items_come_first_then_the_most_frequent_and_single_ones_are_left_out(tokenizer: Tokenizer) -> None:
    # "red" and "circle" are tokens already; "wombat" and 在 occur once.
    assert words(tokenizer, 100) == ["狗", "🇫🇷", "🦄", "quokka", "#unicornlife", "zeppelin"]
    assert words(tokenizer, 2) == ["狗", "🇫🇷"]
    assert words(tokenizer, 0) == []


def test_added_tokens_match_whole_words_and_adjacent_emoji(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens(choose_new_tokens(tokenizer, CAPTIONS, 100))
    assert tokenizer.encode("🦄🦄 quokka", add_special_tokens=False).tokens == ["🦄", "🦄", "quokka"]
    assert "quokka" not in tokenizer.encode("quokkas #unicornlifes").tokens
    assert "#unicornlife" not in tokenizer.encode("#unicornlifes").tokens
    assert tokenizer.decode(tokenizer.encode("a quokka #unicornlife 🦄").ids) == "a quokka #unicornlife 🦄"


def test_a_new_row_is_the_mean_of_the_pieces_and_old_rows_stay() -> None:
    checkpoint = factory.load(GIT_DEMO)
    old = [rows.detach().clone() for rows in checkpoint.model.vocabulary_parameters()]
    pieces = known_pieces(checkpoint.tokenizer.backend_tokenizer, "quokka")
    added = checkpoint.add_new_tokens(CAPTIONS, 100)
    unicorn, quokka = checkpoint.tokenizer.convert_tokens_to_ids(["🦄", "quokka"])
    assert len(pieces) > 1
    for before, after in zip(old, checkpoint.model.vocabulary_parameters(), strict=True):
        assert len(after) == len(before) + len(added)
        assert torch.equal(after[: len(before)], before)
        assert torch.allclose(after[quokka], before[pieces].mean(dim=0))
        assert torch.allclose(after[unicorn], before.mean(dim=0), atol=1e-6)  # none of its pieces is known


def test_stock_transformers_loads_the_result(tmp_path: Path) -> None:
    checkpoint = factory.load(GIT_DEMO)
    checkpoint.add_new_tokens(CAPTIONS, 100)
    checkpoint.save(tmp_path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.config.vocab_size == len(checkpoint.tokenizer)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    for caption in CAPTIONS:
        ids = stock(caption)["input_ids"]
        assert ids == checkpoint.tokenizer(caption)["input_ids"]
    pixels = torch.zeros(1, 3, checkpoint.image_size, checkpoint.image_size)
    tokens = torch.tensor([stock(CAPTIONS[0])["input_ids"]])
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens, pixel_values=pixels, labels=tokens).logits[0, -tokens.shape[1] : -1]
    ours = checkpoint.model.eval().likelihood(pixels, tokens, torch.ones_like(tokens), torch.tensor([0]))
    likelihoods = expected.log_softmax(dim=-1).gather(1, tokens[0, 1:, None])
    assert ours.item() == pytest.approx(likelihoods.mean().item(), abs=1e-4)
    again = factory.load(tmp_path)  # with the checks of a stranger's checkpoint
    assert again.add_new_tokens(CAPTIONS, 100) == []


def validation_emoji_recall() -> float:
    """Fine-tune, and return the share of the emoji of the validation captions that the model says."""
    finetune.run(params.load(), Namespace())
    split = Path("data/dataset/validation")
    examples, reader = read_examples(split), PictureReader(split)
    pictures = [Image.open(io.BytesIO(reader.read(example.file_name))) for example in examples]
    captions = Captioner.from_folder(Path("models/finetune")).caption(pictures)
    found = recall(captions, [example.captions for example in examples], emoji_of)
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 8])
def test_a_model_learns_emoji_that_its_tokenizer_lacked(workspace: Path, rank: int, capsys: Any) -> None:
    table = workspace / "data/raw/sample/captions.csv"
    write_sample(table.parent, pictures=60, seed=3)
    with table.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *([name, f"{' '.join(caption)} 🦄🦩"] for name, *caption in rows)])
    changes = {"checkpoint": str(GIT_DEMO), "freeze": "image_encoder", "epochs": 12, "batch_size": 4}
    set_params(workspace, {f"finetune.{key}": value for key, value in changes.items()} | {"finetune.lora.rank": rank})
    ingest.run(params.load(), Namespace(source="sample"))
    build.run(params.load(), Namespace())
    before = validation_emoji_recall()
    set_params(workspace, {"finetune.new_tokens": 2})
    capsys.readouterr()
    after = validation_emoji_recall()
    assert "adds 2 tokens for words that" in capsys.readouterr().out
    assert after > before + 0.3


def test_scratch_takes_no_new_tokens(workspace: Path) -> None:
    set_params(workspace, {"finetune.checkpoint": "scratch", "finetune.new_tokens": 5})
    with pytest.raises(ConfigError, match="set it to 0"):
        params.load()


def test_an_architecture_without_the_method_says_so() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.new_tokens"):
        CaptionModel.add_tokens(None, {5: []})  # type: ignore[arg-type]
