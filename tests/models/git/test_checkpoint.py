from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, GitConfig
from transformers import GitForCausalLM as StockGit

from pipeline.config import params
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.sections.finetune import Scratch
from pipeline.models import factory
from pipeline.models.git.checkpoint import GitCheckpoint
from pipeline.models.weights import weights_hash
from tests.conftest import ROOT, TINY

CAPTIONS = ["a red star on the grass", "Two dogs, running!", "café #sunset"]


def small(dropout: float = 0.0) -> GitCheckpoint:
    torch.manual_seed(0)
    sizes = Scratch(**{**TINY["finetune.scratch"], "dropout": dropout})
    checkpoint = factory.scratch(sizes, CAPTIONS, max_tokens=32)
    assert isinstance(checkpoint, GitCheckpoint)
    return checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small().save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_saved_checkpoint_loads_in_stock_transformers_with_equal_logits(saved: Path) -> None:
    ours, theirs = small(), AutoModelForCausalLM.from_pretrained(saved)
    processor = AutoProcessor.from_pretrained(saved)
    ids = torch.tensor([processor.tokenizer("a red star")["input_ids"]])
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        mine = ours.model.eval()(input_ids=ids, pixel_values=pixels).logits
        assert torch.allclose(mine, theirs.eval()(input_ids=ids, pixel_values=pixels).logits, atol=1e-5)
    assert processor.tokenizer.decode(ids[0], skip_special_tokens=True) == "a red star"


def test_loading_and_saving_changes_nothing(saved: Path, tmp_path: Path) -> None:
    factory.load(saved).save(tmp_path / "again")
    for file in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_the_hash_covers_weights_and_tokenizer_but_not_training_json(saved: Path) -> None:
    before = weights_hash(saved)
    (saved / "training.json").write_text("{}")
    assert weights_hash(saved) == before
    with (saved / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert weights_hash(saved) != before


def test_captions_have_the_begin_and_end_marks_of_generation() -> None:
    checkpoint = small()
    ids = checkpoint.tokenizer("A red star")["input_ids"]
    assert ids[0] == checkpoint.model.config.bos_token_id
    assert ids[-1] == checkpoint.model.config.eos_token_id


def test_pickled_weights_are_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no \.safetensors weights"):
        factory.load(saved)


def test_a_folder_without_a_git_checkpoint_is_reported(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(ConfigError, match="model_type is 'blip', not 'git'"):
        factory.load(saved)
    (saved / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="is no JSON object"):
        factory.load(saved)
    with pytest.raises(ConfigError, match=r"config\.json: not found"):
        factory.load(tmp_path)


def test_damaged_weights_are_reported_in_one_line(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(ConfigError, match="can't be loaded as a git checkpoint"):
        factory.load(saved)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ConfigError, match="the header of the weights is damaged"):
        factory.load(saved)


def test_weights_that_do_not_match_the_config_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match="its weights lack"):
        factory.load(saved)


def test_an_unreachable_hub_is_reported_with_a_workaround(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TemporaryError, match="set finetune.checkpoint to its folder"):
        factory.locate("microsoft/git-base", "0" * 40)


def test_a_broken_connection_is_a_temporary_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> str:
        raise type("ReadError", (Exception,), {})("connection reset")  # an error of the HTTP library, not an OSError

    monkeypatch.setattr("pipeline.models.factory.snapshot_download", broken)
    with pytest.raises(TemporaryError, match="can't be reached .ReadError."):
        factory.locate("microsoft/git-base", "0" * 40)


def test_a_checkpoint_for_videos_is_refused(saved: Path) -> None:
    config = GitConfig.from_pretrained(saved, num_image_with_embedding=6)
    StockGit(config).save_pretrained(saved)
    with pytest.raises(ConfigError, match="num_image_with_embedding: found 6, so this checkpoint captions videos"):
        factory.load(saved)


@pytest.mark.parametrize("frames", [None, 0])
def test_a_checkpoint_without_frames_is_one_for_pictures(saved: Path, frames: int | None) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_image_with_embedding": frames}))
    assert factory.load(saved).model.config.num_image_with_embedding == frames


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_loaded_as_float32(saved: Path, dtype: torch.dtype) -> None:
    stock = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    stock.save_pretrained(saved)
    assert str(dtype).removeprefix("torch.") in (saved / "config.json").read_text()
    loaded = factory.load(saved).model
    assert {weights.dtype for weights in loaded.parameters()} == {torch.float32}


def test_a_folder_is_used_as_given(saved: Path) -> None:
    assert factory.locate(str(saved), None) == saved


def test_the_file_layout_of_git_base_is_loaded(tmp_path: Path) -> None:
    """microsoft/git-base has a preprocessor_config.json and a vocab.txt."""
    checkpoint = small()
    checkpoint.model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": 32, "width": 32},
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "CLIPImageProcessor",
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "processor_class": "GitProcessor",
                "resample": 3,
                "size": {"shortest_edge": 32},
            }
        )
    )
    vocabulary = sorted(checkpoint.tokenizer.get_vocab(), key=checkpoint.tokenizer.get_vocab().get)
    (tmp_path / "base" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "base" / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512})
    )
    loaded = factory.load(tmp_path / "base")
    assert loaded.image_processor.image_mean[0] == 0.48145466
    assert loaded.tokenizer("A red star")["input_ids"] == checkpoint.tokenizer("a red star")["input_ids"]
    shutil.rmtree(tmp_path / "base")


def test_the_default_scratch_sizes_define_a_small_model() -> None:
    checkpoint = factory.scratch(params.load(ROOT / "params.yaml").finetune.scratch, CAPTIONS, 48)
    assert 0.5e6 < checkpoint.model.num_parameters() < 3e6


def test_the_same_captions_produce_the_same_vocabulary() -> None:
    """The trainer of `tokenizers` alone does not guarantee this: huggingface/tokenizers#1794."""
    captions = [
        f"{a}{b} {b}{a}ing the un{a}able" for a in ("wel", "come", "lib", "rary") for b in ("ers", "tok", "ize")
    ]
    sizes = params.load(ROOT / "params.yaml").finetune.scratch.model_copy(update={"vocabulary": 120})
    checkpoint = [factory.scratch(sizes, captions, 48).tokenizer for _ in range(8)]
    assert all(other.get_vocab() == checkpoint[0].get_vocab() for other in checkpoint)
    assert checkpoint[0].tokenize("welcome ##w") == checkpoint[0].tokenize("welcome") + checkpoint[0].tokenize("##w")
    assert checkpoint[0].decode(checkpoint[0]("unlibable")["input_ids"], skip_special_tokens=True) == "unlibable"
