"""A toy architecture comes in through the public door, and everything works with it."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from pipeline import finetune
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Scratch
from pipeline.data.dataset import read_examples
from pipeline.models import factory
from pipeline.models.base import CaptionModel, Checkpoint, Decoding
from pipeline.models.captioner import Captioner
from pipeline.models.wordpiece import train_wordpiece
from pipeline.training.history import read_history
from tests.conftest import set_params

CELLS, SIDE, WIDTH, LONGEST = 4, 16, 24, 60


class BagOfPixels(CaptionModel):
    """The mean colours of a few cells; each word follows from them and the word before it."""

    def __init__(self, vocabulary: int, begin: int, end: int) -> None:
        super().__init__()
        self.settings = {"model_type": "toy", "vocabulary": vocabulary, "begin": begin, "end": end, "longest": LONGEST}
        self.colours = nn.Linear(3, WIDTH)
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, vocabulary)

    image_encoder = property(lambda self: self.colours)
    image_encoder_settings = property(lambda self: {"cells": CELLS})
    features_shape = property(lambda self: (CELLS, WIDTH))
    image_size = property(lambda self: SIDE)
    max_tokens = property(lambda self: LONGEST)

    def set_caption_length(self, max_tokens: int) -> None:
        self.settings["longest"] = max_tokens

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.colours(avg_pool2d(pixel_values, SIDE // 2).flatten(2).transpose(1, 2))

    def logits(self, features: torch.Tensor, input_ids: torch.Tensor, picture_of: torch.Tensor) -> torch.Tensor:
        seen = features.mean(dim=1)[picture_of, None]
        return self.output(torch.tanh(self.hidden(self.words(input_ids) + seen)))

    def caption_loss(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encode(pixel_values) if features is None else features
        is_target = attention_mask[:, 1:].bool()
        logits = self.logits(features, input_ids[:, :-1], picture_of)[is_target]
        targets = (input_ids if labels is None else labels)[:, 1:][is_target]
        return cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing), is_target.sum()

    def log_probabilities(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        logits = self.logits(features, input_ids[:, :-1], picture_of).log_softmax(-1)
        mask = attention_mask[:, 1:]
        return (logits.gather(2, input_ids[:, 1:, None])[..., 0] * mask).sum(1)

    def generate_captions(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, decoding: Decoding
    ) -> torch.Tensor:
        features = self.encode(pixel_values) if features is None else features
        picture_of = torch.arange(len(features)).repeat_interleave(max(1, decoding.samples))
        ids = torch.full((len(picture_of), 1), self.settings["begin"])
        ended = torch.zeros(len(ids), dtype=torch.bool)
        while ids.shape[1] < (decoding.max_tokens or self.settings["longest"]) and not ended.all():
            logits = self.logits(features, ids[:, -1:], picture_of)[:, 0]
            following = torch.multinomial(logits.softmax(-1), 1)[:, 0] if decoding.samples else logits.argmax(-1)
            following = following.masked_fill(ended, 0)
            ids = torch.cat([ids, following[:, None]], dim=1)
            ended |= following == self.settings["end"]
        return ids

    def lora_targets(self, with_image_encoder: bool) -> str:
        return "hidden|colours" if with_image_encoder else "hidden"

    def enable_gradient_checkpointing(self) -> None:
        raise ConfigError("params.yaml: finetune.gradient_checkpointing: a toy has none; set it to false")

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.settings))
        save_file(dict(weights or self.state_dict()), folder / "model.safetensors")


class Toy:
    checked = 0

    def load(self, folder: Path) -> Checkpoint:
        config = json.loads((folder / "config.json").read_text())
        model = BagOfPixels(config["vocabulary"], config["begin"], config["end"])
        model.set_caption_length(config["longest"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return Checkpoint(model, CLIPImageProcessorPil.from_pretrained(folder), tokenizer)

    def scratch(self, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
        tokenizer = train_wordpiece(captions, sizes.vocabulary, max_tokens)
        model = BagOfPixels(len(tokenizer), tokenizer.cls_token_id, tokenizer.sep_token_id)
        processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        return Checkpoint(model, processor, tokenizer)

    def self_check(self, device: torch.device) -> None:
        Toy.checked += 1


@pytest.fixture
def toy(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a small data set that fine-tunes a toy checkpoint in the folder `base`."""
    shutil.copy(mlflow_db, workspace)
    monkeypatch.setattr(factory, "_ARCHITECTURES", dict(factory._ARCHITECTURES))
    factory.register("toy", Toy)
    bring_data_set(workspace)
    torch.manual_seed(0)
    sizes = params.load().finetune.scratch
    captions = [caption for example in read_examples(Path("data/dataset/train")) for caption in example.captions]
    factory.scratch(sizes, captions, 40, model_type="toy").save(workspace / "base")
    set_params(workspace, {"finetune.checkpoint": "base", "finetune.learning_rate": 0.02, "finetune.epochs": 3})
    return workspace


def weights(folder: str) -> dict[str, torch.Tensor]:
    return factory.load(Path(folder)).model.state_dict()


def test_a_toy_architecture_trains_and_captions(toy: Path) -> None:
    trained = []
    for gigabytes in (0, 1):
        set_params(toy, {"finetune.freeze": "image_encoder", "runtime.feature_cache_gb": gigabytes})
        finetune.run(params.load(), Namespace())
        trained.append(weights("models/finetune"))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert Toy.checked >= 2
    (rows,) = Path(".work/features").glob("*.rows")
    assert rows.stat().st_size % (CELLS * WIDTH * 4) == 0
    losses = [epoch.validation_loss for epoch in read_history(Path("reports/finetune.csv"))]
    assert losses[-1] < losses[0]
    before, after = weights("base"), weights("models/finetune")
    assert {name for name in before if torch.equal(before[name], after[name])} == {"colours.weight", "colours.bias"}
    captioner = Captioner.from_folder(Path("models/finetune"))
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy")]
    assert captioner.image_size == SIDE
    assert all(captioner.caption(pictures, max_tokens=12))
    assert [len(set(captions)) for captions in captioner.several(pictures, 3)] == [3, 3]


def test_a_toy_architecture_learns_by_lora_and_saves_plain_weights(toy: Path) -> None:
    set_params(toy, {"finetune.lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0}})
    finetune.run(params.load(), Namespace())
    before, after = weights("base"), weights("models/finetune")
    assert set(before) == set(after)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "hidden.weight",
        "colours.weight",
    }


def test_an_unsupported_param_is_reported(toy: Path) -> None:
    set_params(toy, {"finetune.gradient_checkpointing": True})
    with pytest.raises(ConfigError, match="a toy has none"):
        finetune.run(params.load(), Namespace())


@pytest.mark.parametrize("offline", [False, True])
def test_a_checkpoint_is_unchanged_after_loading_and_saving(
    toy: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    factory.load(Path("base")).save(Path("again"))
    names = {path.name for path in Path("base").iterdir()}
    assert names == {path.name for path in Path("again").iterdir()}
    for name in names:
        assert Path("again", name).read_bytes() == Path("base", name).read_bytes(), name
