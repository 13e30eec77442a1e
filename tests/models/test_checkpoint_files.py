"""Checkpoints whose parts do not fit each other are refused in one line, before anything large is built."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.errors import ConfigError
from pipeline.models import factory
from pipeline.runtime.torch_memory import peak_memory
from tests.conftest import ROOT, jpeg, run
from tests.models.git.test_checkpoint import small

Edit = Callable[[Path], None]


def edited(file: str, *keys: str, to: Any) -> Edit:
    """Return a function that sets one value in a JSON file of a checkpoint."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        (folder / file).write_text(json.dumps(content))

    return edit


def both(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits] and None


def config(*keys: str, to: Any) -> Edit:
    return edited("config.json", *keys, to=to)


def processor(*keys: str, to: Any) -> Edit:
    return edited("processor_config.json", "image_processor", *keys, to=to)


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def deep(file: str) -> Edit:
    return lambda folder: (folder / file).write_text("[" * 100_000) and None


def a_header_of_a_gigabyte(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**30) + b"{")


def begin_mark(to: Any) -> Edit:
    return both(config("bos_token_id", to=to), edited("generation_config.json", "bos_token_id", to=to))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            processor("crop_size", to=square(16)),
            "makes pictures of 16 x 16 pixels, but .* config.json is 32",
        ),
        (processor("crop_size", to=square(60_000)), "crop_size: .* does not fit image_size 32"),
        (processor("size", to={"shortest_edge": 60_000}), "size: .* does not fit image_size 32"),
        (processor("image_mean", to=[0.5]), "image_mean: found .* expected three numbers"),
        (processor("image_mean", to=0.5), "image_mean: found 0.5, expected three numbers"),
        (processor("image_std", to=[0.5, 0, 0.5]), "image_std: found .* expected numbers above 0"),
        (processor("rescale_factor", to=0), "rescale_factor: found 0"),
        (config("num_hidden_layers", to=1_000_000), "num_hidden_layers: found 1000000, allowed are 1 to 256"),
        (config("vision_config", "num_hidden_layers", to=1_000_000), "vision_config.num_hidden_layers: found 1000000"),
        (config("num_hidden_layers", to=200), "its weights lack 3184 tensors"),
        (config("num_image_with_embedding", to=10**9), "num_image_with_embedding: found 1000000000"),
        (config("hidden_size", to=2**20), "config.json does not fit the weights: .* 1048576 by config.json"),
        (config("intermediate_size", to=2**30), "config.json does not fit the weights"),
        (config("vocab_size", to=2**40), "config.json does not fit the weights"),
        (config("vision_config", "image_size", to=60_000), "vision_config.image_size: found 60000"),
        (config("vision_config", "image_size", to=64), "does not fit the weights: .*position_embedding"),
        (config("vision_config", "patch_size", to=1), "does not fit the weights: .*patch_embedding"),
        (config("vision_config", "num_channels", to=1), "num_channels: found 1, pictures have 3"),
        (begin_mark(None), "bos_token_id: found null, expected a token id below vocab_size"),
        (begin_mark(10**6), "bos_token_id: found 1000000, expected a token id below vocab_size"),
        (begin_mark(5), "encodes captions as .2. ... .3., but generation begins with 5"),
        (edited("generation_config.json", "max_length", to="x"), "max_length: found x, allowed are 2 to"),
        (edited("generation_config.json", "max_length", to=0), "max_length: found 0, allowed are 2 to"),
        (edited("generation_config.json", "max_length", to=10**9), "max_length: found 1000000000, allowed are 2 to"),
        (edited("tokenizer.json", "model", "unk_token", to="?!"), "unk_token: '.!' is not in the vocabulary"),
        (config("num_attention_heads", to="a"), "can't be loaded as a git checkpoint: .*'num_attention_heads'"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "can't be loaded as a git checkpoint: .*tokenizer"),
        (deep("config.json"), "config.json: is no JSON object"),
        (deep("tokenizer.json"), "can't be loaded as a git checkpoint"),
        (a_header_of_a_gigabyte, "the header of the weights is damaged"),
        (config("model_type", to=["git"]), "model_type is .* not 'git'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line_without_large_allocations(
    tmp_path: Path, edit: Edit, words: str
) -> None:
    small().save(tmp_path)
    edit(tmp_path)
    start = time.monotonic()
    with peak_memory(torch.device("cpu")) as needed, pytest.raises(ConfigError, match=words) as caught:
        factory.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert "report" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert needed() < 100e6
    assert time.monotonic() - start < 10


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    checkpoint = small()
    checkpoint.tokenizer.add_tokens(["newword"])
    checkpoint.save(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer has ids up to \d+, but vocab_size in config.json is \d+"):
        factory.load(tmp_path)


def test_a_checkpoint_in_shards_is_checked_and_loaded(tmp_path: Path) -> None:
    checkpoint = small()
    checkpoint.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    checkpoint.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = factory.load(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], weights) for name, weights in checkpoint.model.state_dict().items())
    edited("model.safetensors.index.json", "weight_map", "output.bias", to="../../other.safetensors")(tmp_path)
    with pytest.raises(ConfigError, match="names no files of this folder"):
        factory.load(tmp_path)


def test_checking_draws_no_random_numbers(tmp_path: Path) -> None:
    small().save(tmp_path)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    factory.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_git_demo_fits() -> None:
    assert factory.load(ROOT / "models" / "git-demo").image_size == 96


def test_a_checkpoint_that_does_not_fit_ends_a_command_with_78_and_one_line(workspace: Path) -> None:
    shutil.copytree(ROOT / "models" / "git-demo", workspace / "base")
    processor("crop_size", to=square(64))(workspace / "base")
    (workspace / "red.jpg").write_bytes(jpeg())
    done = run(workspace, "image-captioning", "caption", "red.jpg", "--model", "base")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "makes pictures of 64 x 64 pixels, but image_size in config.json is 96" in done.stderr
