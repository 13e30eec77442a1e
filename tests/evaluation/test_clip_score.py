"""CLIPScore with a tiny CLIP model made here, against the formulas on transformers' own forward pass."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from pipeline.config.errors import ConfigError
from pipeline.evaluation.clip_score import ClipScorer
from tests.conftest import jpeg

CAPTIONS = ["a red boat", "two blue cups on a table and much more that the model has no room to read at all", ""]
REFERENCES = [["a boat that is red", "my boat"], ["cups"], ["a green tree"]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    inner.train_from_iterator(
        ["a red boat and two blue cups on a table A photo depicts"] * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 400, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**sizes, **text}, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def cosines(clip: Path, pictures: list[bytes], texts: list[str]) -> np.ndarray:
    """Return the cosines of all texts and pictures from the logits of transformers' CLIP, one text at a time."""
    model = CLIPModel.from_pretrained(clip).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(clip)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=images, return_tensors="pt")["pixel_values"]
    rows = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer([f"A photo depicts {text}"], truncation=True, max_length=20, return_tensors="pt")
            logits = model(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_text
            rows.append((logits / model.logit_scale.exp())[0].numpy())
    return np.array(rows)


def test_scores_follow_the_formulas_of_the_paper(clip: Path) -> None:
    pictures = [jpeg("red"), jpeg("blue"), jpeg("green")]
    found = ClipScorer(clip, pictures, REFERENCES).scores(CAPTIONS)
    fits = 2.5 * np.maximum(np.diag(cosines(clip, pictures, CAPTIONS)), 0)
    assert found["CLIPScore"] == pytest.approx(fits.mean(), abs=1e-5)
    assert 0 < found["RefCLIPScore"] < 2.5


def test_a_caption_that_equals_a_reference_agrees_fully(clip: Path) -> None:
    pictures = [jpeg("red"), jpeg("blue"), jpeg("green")]
    said = [several[-1] for several in REFERENCES]
    found = ClipScorer(clip, pictures, REFERENCES).scores(said)
    fits = 2.5 * np.maximum(np.diag(cosines(clip, pictures, said)), 0)
    assert found["RefCLIPScore"] == pytest.approx((2 * fits / (fits + 1)).mean(), abs=1e-5)


def test_a_folder_without_a_whole_clip_model_is_refused_in_one_line(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(clip / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"visual_projection.weight should have the shape \(12, 16\), found None"):
        ClipScorer(tmp_path, [jpeg()], [["a"]])
    config = json.loads((clip / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**6
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has 1,000,000 layers; the limit is 256"):
        ClipScorer(tmp_path, [jpeg()], [["a"]])
    (tmp_path / "config.json").write_text('{"model_type": "git"}')
    with pytest.raises(ConfigError, match=r"model_type is 'git', not 'clip'"):
        ClipScorer(tmp_path, [jpeg()], [["a"]])
