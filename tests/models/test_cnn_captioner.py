"""CNN captioners train, resume, caption and are served like any other architecture. Their encoder here is tiny."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, EfficientNetConfig, EfficientNetModel

from pipeline import build, evaluate, finetune, ingest, register
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import CREATED
from pipeline.data.dataset import read_examples
from pipeline.models import factory
from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.captioner import Captioner
from pipeline.models.cnn import encoder
from pipeline.models.cnn.decoder import Decoder
from pipeline.models.inputs import Batch, caption_tokens, collate
from pipeline.runtime.atomic_files import sha256_of
from pipeline.tracking import registry, runs
from pipeline.training.trainer import Trainer
from tests.conftest import jpeg, run, set_params
from tests.training.test_resume import start, wait_for_state

SIDE = 64  # pixels; a grid of 2 x 2 cells
NAMES = [name for name in CREATED if name != "scratch"]
OUTPUTS = [Path("models/finetune"), Path("reports/finetune.json"), Path("reports/finetune.csv")]
CAPTIONS = ["a red dog runs on grass", "two men sit on a red bench", "a dog", "grass and a bench"] * 3
PHOTOS = [Image.new("RGB", (90, 70), colour) for colour in ("red", "navy", "green")]


def tiny_encoder() -> EfficientNetModel:
    config = EfficientNetConfig(
        image_size=SIDE, width_coefficient=0.05, depth_coefficient=0.1, hidden_dim=64, hidden_act="relu6"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eyes = EfficientNetModel(config).eval()
        with torch.no_grad():  # transformers' initial weights are so small that every picture has the same features
            for name, weight in eyes.named_parameters():
                if weight.ndim == 4:
                    weight.normal_(std=math.prod(weight.shape[1:]) ** -0.5)
                elif "norm.weight" in name or "bn.weight" in name or "batchnorm.weight" in name:
                    weight.fill_(2.0)
    return eyes


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "imagenet_encoder", tiny_encoder)
    monkeypatch.setattr(encoder, "check_installed", lambda: None)


def created(name: str) -> Checkpoint:
    torch.manual_seed(0)
    sizes = params.load().finetune.scratch
    checkpoint = factory.create(name, sizes, CAPTIONS, 40)
    checkpoint.model.set_caption_length(14)
    checkpoint.model.eval()
    return checkpoint


def batch_of(checkpoint: Checkpoint, captions: list[list[str]]) -> Batch:
    pictures = torch.randint(0, 256, (len(captions), 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    return collate(checkpoint, pictures.to(torch.uint8), caption_tokens(checkpoint, captions, 40))


@pytest.fixture
def built(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Path:
    """A workspace with a small data set; its training writes a state after each step."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    start = {"finetune.checkpoint": "cnn-attention", "finetune.freeze": "image_encoder", "finetune.epochs": 3}
    set_params(workspace, {**start, "runtime.state_minutes": 0})
    return workspace


def train(workspace: Path, **changes: Any) -> str:
    """Train, and return the hash of the outputs."""
    set_params(workspace, {f"finetune.{key}": value for key, value in changes.items()})
    finetune.run(params.load(), Namespace())
    return sha256_of(*OUTPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_captions_that_share_a_picture_have_the_loss_of_separate_rows(name: str, workspace: Path) -> None:
    checkpoint = created(name)
    batch = batch_of(checkpoint, [CAPTIONS[:3], CAPTIONS[3:4]])
    model = checkpoint.model
    assert batch.pixel_values is not None
    with torch.inference_mode():
        loss, tokens = model.caption_loss(batch.pixel_values, batch.input_ids, batch.attention_mask, batch.picture_of)
        separate, count = 0.0, 0
        for row in range(len(batch.input_ids)):
            length = int(batch.attention_mask[row].sum())
            alone = (batch.input_ids[row : row + 1, :length], torch.ones(1, length), torch.tensor([0]))
            picture = batch.pixel_values[batch.picture_of[row]][None]
            one, targets = model.caption_loss(picture, *alone)
            separate, count = separate + one.item(), count + int(targets)
            (likely,) = model.likelihood(picture, *alone)
            assert likely.item() == pytest.approx(-one.item() / int(targets), rel=1e-4)
    assert int(tokens) == count
    assert loss.item() == pytest.approx(separate, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_search_takes_the_likeliest_word_and_beams_find_likelier_captions(name: str, workspace: Path) -> None:
    checkpoint = created(name)
    batch = batch_of(checkpoint, [["a"], ["a"], ["a"]])
    model, end = checkpoint.model, checkpoint.tokenizer.sep_token_id
    with torch.inference_mode():
        features = model.encode(batch.pixel_values)
        greedy, greedy_scores = model.generate_with_scores(features, Decoding())
        beams, beam_scores = model.generate_with_scores(features, Decoding(beams=4))
        mask = torch.ones_like(greedy)
        for row, tokens in enumerate(greedy):
            for place in range(1, greedy.shape[1]):
                if end in tokens[1:place]:
                    break
                losses = []  # of each word of the vocabulary in this place
                for word in range(len(checkpoint.tokenizer)):
                    tried = torch.cat([tokens[:place], torch.tensor([word])])[None]
                    loss, _ = model.caption_loss(
                        None, tried, mask[:1, : place + 1], torch.tensor([0]), features[row : row + 1]
                    )
                    losses.append(loss.item())
                assert losses[int(tokens[place])] <= min(losses) + 1e-4
                if place == 2:
                    break
        texts = checkpoint.tokenizer.batch_decode(beams, skip_special_tokens=True)
        assert len(texts) == 3
        assert greedy_scores is not None
        assert beam_scores is not None
        assert (beam_scores >= greedy_scores - 1e-3).all()
        torch.manual_seed(0)
        sampled = model.generate_captions(None, features, Decoding(samples=5, top_p=0.9))
        assert len(sampled) == 15
        assert len({tuple(row.tolist()) for row in sampled}) > 5


def test_attention_maps_show_where_it_looked_when_it_said_the_words(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = created("cnn-attention")
    captioner = Captioner(checkpoint)
    seen: list[torch.Tensor] = []
    step = Decoder.step

    def record(self: Decoder, *args: Any) -> Any:
        found = step(self, *args)
        seen.append(found[2])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", record)
        (caption,) = captioner.caption(PHOTOS[:1])
    found = captioner.attention(PHOTOS[0], caption)
    assert found.words == caption.split()
    assert found.weights.shape == (len(found.words), 2, 2)
    assert found.weights.sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)
    assert found.picture.shape == (SIDE, SIDE, 3)
    pieces = checkpoint.tokenizer.tokenize(caption)
    assert found.words == pieces  # a piece per word, so the steps are those of the words
    for weights, step_weights in zip(found.weights, seen, strict=False):
        assert weights.ravel() == pytest.approx(step_weights[0].numpy(), abs=1e-5)


def test_attention_of_a_words_pieces_is_averaged_and_marks_have_no_map(workspace: Path) -> None:
    checkpoint = created("cnn-attention")
    captioner = Captioner(checkpoint)
    found = captioner.attention(PHOTOS[1], "Dogs sit, on a 'bench'.")
    assert found.words == ["Dogs", "sit", "on", "a", "bench"]
    assert found.weights.sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)
    assert len(checkpoint.tokenizer.tokenize("dogs")) > 1


@pytest.mark.parametrize(("name", "attends"), [("cnn-attention", True), ("cnn-lstm", False), ("cnn-git", False)])
def test_only_attention_says_where_it_looked(name: str, attends: bool, workspace: Path) -> None:
    assert Captioner(created(name)).attends is attends


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_a_captions_first_words_is_continued_like_the_caption(name: str, workspace: Path) -> None:
    checkpoint = created(name)
    batch = batch_of(checkpoint, [["a"], ["a"]])
    with torch.inference_mode():
        features = checkpoint.model.encode(batch.pixel_values)
        for row in range(2):
            one = features[row : row + 1]
            greedy = checkpoint.model.generate_captions(None, one, Decoding(min_tokens=8))
            prompt = tuple(greedy[0, 1:4].tolist())
            again = checkpoint.model.generate_captions(None, one, Decoding(min_tokens=5, prompt=prompt))
            assert torch.equal(again, greedy)
            others = tuple(token % 20 + 10 for token in prompt)
            beams = checkpoint.model.generate_captions(None, one, Decoding(beams=3, found=3, prompt=others))
            assert beams[:, 1:4].tolist() == [list(others)] * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_captioner_is_a_hugging_face_model(name: str, workspace: Path) -> None:
    checkpoint = created(name)
    checkpoint.save(workspace / "saved")
    config = json.loads((workspace / "saved/config.json").read_text())
    assert "Apache-2.0" in config["encoder_license"]
    kind = AutoModelForCausalLM if name == "cnn-git" else AutoModel
    again = kind.from_pretrained(workspace / "saved")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in checkpoint.model.state_dict().items())
    loaded = factory.load(workspace / "saved")
    assert Captioner(loaded).caption(PHOTOS, beams=3) == Captioner(checkpoint).caption(PHOTOS, beams=3)
    assert loaded.image_size == SIDE


@pytest.mark.parametrize(
    "name", ["cnn-git", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cnn-attention", "cnn-lstm", "cnn-rnn"))]
)
def test_training_learns_and_its_result_does_not_depend_on_the_feature_cache(name: str, built: Path) -> None:
    set_params(built, {"runtime.feature_cache_gb": 1})
    cached = train(built, checkpoint=name, learning_rate=3e-3)
    losses = [float(line.split(",")[2]) for line in Path("reports/finetune.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    set_params(built, {"runtime.feature_cache_gb": 0})
    assert train(built) == cached
    trained, eyes = factory.load(Path("models/finetune")).model.image_encoder.state_dict(), tiny_encoder().state_dict()
    assert all(torch.equal(trained[key], value) for key, value in eyes.items())


def test_an_image_encoder_that_is_trained_changes_and_keeps_its_batch_statistics(built: Path) -> None:
    train(built, checkpoint="cnn-lstm", freeze="none", epochs=1)
    before, after = tiny_encoder().state_dict(), factory.load(Path("models/finetune")).model.image_encoder.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "encoder.top_conv.weight" in changed
    assert not [key for key in changed if "running" in key or "num_batches" in key]


def test_training_resumes_bit_for_bit_after_five_crashes(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(built, checkpoint="cnn-lstm")
    original = Trainer._step
    for step in (1, 2, 4, 6, 8):

        def crash(self: Trainer, *args: Any, at: int = step) -> Any:
            if self.state.step >= at:
                raise KeyboardInterrupt
            return original(self, *args)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trainer, "_step", crash)
            with pytest.raises(KeyboardInterrupt):
                train(built)
    capsys.readouterr()
    assert train(built) == expected
    assert "resumes from step 8 of 9" in capsys.readouterr().out


@pytest.mark.slow
def test_five_kills_do_not_change_the_result(built: Path) -> None:
    created("cnn-lstm").save(built / "base")
    set_params(built, {"finetune.checkpoint": "base", "finetune.epochs": 20, "finetune.learning_rate": 3e-3})
    command = (sys.executable, "-m", "pipeline.finetune")
    assert run(built, *command).returncode == 0
    expected = sha256_of(*OUTPUTS)
    for step in (4, 12, 25, 37, 50):
        process = start(built, *command)
        wait_for_state(built, step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert "resumes from step" in run(built, *command).stdout
    assert sha256_of(*OUTPUTS) == expected


@pytest.mark.slow
def test_a_trained_captioner_is_the_start_of_another_training(built: Path) -> None:
    train(built, checkpoint="cnn-attention", epochs=1)
    shutil.copytree("models/finetune", "base")
    train(built, checkpoint="base", epochs=1)
    facts = json.loads(Path("models/finetune/training.json").read_text())
    assert facts["checkpoint"] == "base"
    with pytest.raises(ConfigError, match=r"finetune.lora.rank: LoRA does not apply to CNN captioners.*set it to 0"):
        train(built, lora={"rank": 4, "alpha": 8.0, "dropout": 0.0})


@pytest.mark.slow
def test_gits_decoder_on_a_cnn_learns_by_lora_and_with_gradient_checkpointing(built: Path) -> None:
    train(built, checkpoint="cnn-git", epochs=1)
    shutil.copytree("models/finetune", "base")
    before = factory.load(Path("base")).model.state_dict()
    train(built, checkpoint="base", lora={"rank": 4, "alpha": 8.0, "dropout": 0.0}, gradient_checkpointing=True)
    after = factory.load(Path("models/finetune")).model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(".attention." in key and key.endswith(".weight") for key in changed)


def test_a_captioner_is_evaluated_registered_and_served(built: Path) -> None:
    train(built, checkpoint="cnn-attention", epochs=1)
    evaluate.run(params.load(), Namespace())
    report = json.loads(Path("reports/evaluate.json").read_text())
    assert "before_finetuning" not in report  # there was no captioner before
    assert "Apache-2.0" in json.loads(Path("models/finetune/training.json").read_text())["notice"]
    register.run(params.load(), Namespace())
    store = runs.client()
    version = registry.versions(store, "image-captioning")[-1]
    served = runs.mlflow.pyfunc.load_model(f"models:/image-captioning/{version}")
    import pandas as pd

    answer = served.predict(pd.DataFrame({"image": [base64.b64encode(jpeg()).decode(), "no picture"]}))
    rows = answer.to_dict("records") if hasattr(answer, "to_dict") else answer
    assert rows[0]["error"] == ""
    assert (
        rows[0]["caption"]
        == Captioner.from_folder(Path("models/finetune")).caption(
            [Image.open(__import__("io").BytesIO(jpeg())).convert("RGB")], beams=3
        )[0]
    )
    assert rows[1]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checkpoint": "cnn-foo"},
            "`checkpoint` 'cnn-foo' is neither one of scratch, cnn-attention, cnn-lstm, cnn-rnn, cnn-git",
        ),
        ({"checkpoint": "cnn-lstm", "lora.rank": 4}, "`lora.rank` would keep the random weights of `cnn-lstm`"),
    ],
)
def test_params_that_do_not_fit_are_reported_in_one_line(
    changes: dict[str, Any], message: str, workspace: Path
) -> None:
    set_params(workspace, {f"finetune.{key}": value for key, value in changes.items()})
    with pytest.raises(ConfigError) as raised:
        params.load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_gradient_checkpointing_is_refused_in_one_line(built: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune.gradient_checkpointing: CNN captioners do not support it"):
        train(built, checkpoint="cnn-rnn", gradient_checkpointing=True)


def test_the_missing_extra_stops_a_training_before_it_reads_data(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ConfigError("not installed")

    monkeypatch.setattr(encoder, "check_installed", missing)
    with pytest.raises(ConfigError, match="not installed"):
        train(workspace, checkpoint="cnn-attention")


@pytest.mark.parametrize(("captions", "pictures"), [(["dog"], 6), (["a dog runs"], 3)])
def test_one_word_and_one_training_picture_are_enough(
    captions: list[str], pictures: int, bring: Callable[..., Path], workspace: Path, mlflow_db: Path
) -> None:
    shutil.copy(mlflow_db, workspace)
    colours = ["red", "green", "blue", "white", "black", "yellow"][:pictures]
    bring(
        "mine",
        {f"{c}.jpg": jpeg(c, (70 + i, 70)) for i, c in enumerate(colours)},
        [[f"{c}.jpg", captions[0]] for c in colours],
    )
    set_params(workspace, {"ingest.sources": ["mine"], "build.validation": 0.4, "build.test": 0.0})
    ingest.run(params.load(), Namespace(source="mine"))
    build.run(params.load(), Namespace())
    assert read_examples(Path("data/dataset/train"))
    train(workspace, checkpoint="cnn-attention", epochs=1)
    assert all(
        isinstance(text, str) for text in Captioner.from_folder(Path("models/finetune")).caption(PHOTOS, beams=3)
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_type", "gru", "decoder_type: found 'gru', known are attention, lstm, rnn"),
        ("hidden_size", 10_000_000, "config.json does not fit the weights"),
        ("vocab_size", 3, "config.json does not fit the weights"),
    ],
)
def test_a_damaged_config_is_reported_before_a_model_is_built(
    key: str, value: Any, message: str, workspace: Path
) -> None:
    created("cnn-attention").save(workspace / "saved")
    file = workspace / "saved/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ConfigError, match=message):
        factory.load(workspace / "saved")


@pytest.mark.skipif(find_spec(encoder._PACKAGE) is None, reason=f"needs {encoder._PACKAGE}, the extra `cnn`")
def test_the_names_build_captioners_on_the_imagenet_encoder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    checkpoint = created("cnn-attention")
    assert checkpoint.model.features_shape == (49, 1280)
    assert checkpoint.image_size == 224
    assert len(Captioner(checkpoint).caption(PHOTOS)) == 3


@pytest.mark.parametrize("name", ["cnn-attention", "cnn-git"])
@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("generation_config.json", {"max_length": 3000}, "max_length: found 3000, allowed are 2 to"),
        ("generation_config.json", {"max_length": "x"}, "max_length: found x"),
        ("config.json", {"num_block_repeats": [400, -398, 1, 1, 1, 1, 1]}, "num_block_repeats: found 400"),
        ("config.json", {"num_block_repeats": [10**9] * 7}, "num_block_repeats: found 1000000000"),
        ("config.json", {"strides": [1] * 7}, "makes features of 1024 x 64, not 4 x 64"),
        ("config.json", {"batch_norm_eps": -5}, "config.json|can't be loaded"),
    ],
)
def test_a_config_that_would_fail_at_the_first_picture_is_reported_at_loading(
    name: str, file: str, changes: dict[str, Any], message: str, workspace: Path
) -> None:
    created(name).save(workspace / "saved")
    place = workspace / "saved" / file
    content = json.loads(place.read_text())
    (content["encoder_config"] if file == "config.json" else content).update(changes)
    place.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        factory.load(workspace / "saved")


@pytest.mark.parametrize("name", ["cnn-attention", "cnn-git"])
def test_several_end_marks_are_allowed(name: str, workspace: Path) -> None:
    created(name).save(workspace / "saved")
    expected = Captioner.from_folder(workspace / "saved").caption(PHOTOS, beams=2)
    place = workspace / "saved" / "generation_config.json"
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "eos_token_id": [content["eos_token_id"]]}))
    checkpoint = factory.load(workspace / "saved")
    assert Captioner.from_folder(workspace / "saved").caption(PHOTOS, beams=2) == expected
    features = checkpoint.model.encode(torch.zeros(1, 3, SIDE, SIDE))
    _, scores = checkpoint.model.generate_with_scores(features, Decoding(beams=2))
    assert scores is not None
    assert scores.isfinite().all()


def test_a_checkpoint_with_an_adapter_is_refused(workspace: Path) -> None:
    created("cnn-attention").save(workspace / "saved")
    (workspace / "saved/adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has an adapter \(adapter_config\.json\)"):
        factory.load(workspace / "saved")
