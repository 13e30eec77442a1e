from __future__ import annotations

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import build, finetune
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.models import factory
from pipeline.models.git import modeling
from pipeline.models.weights import weights_hash
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.tracking import live, runs
from pipeline.training import session
from pipeline.training.history import EpochMetrics, best_by_cider, read_history
from pipeline.training.trainer import Trainer
from tests.conftest import environment, free_port, run, set_params

RUNTIME = {"feature_cache_gb"}
OUTPUTS = [Path("models/finetune"), Path("reports/finetune.json"), Path("reports/finetune.csv")]


@pytest.fixture
def built(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Path:
    """A workspace with a small data set."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    return workspace


def train(**changes: object) -> dict:
    set_params(Path.cwd(), {f"{'runtime' if key in RUNTIME else 'finetune'}.{key}": v for key, v in changes.items()})
    finetune.run(params.load(), Namespace())
    return read_json(Path("models/finetune/training.json"))


def test_the_same_input_produces_the_same_weights_bit_for_bit(built: Path) -> None:
    train()
    first = sha256_of(*OUTPUTS)
    torch.rand(3)  # the random state of the process does not matter
    train()
    assert sha256_of(*OUTPUTS) == first
    train(seed=18)
    assert sha256_of(*OUTPUTS) != first


def test_it_learns_and_keeps_the_best_epoch_by_validation(built: Path) -> None:
    training = train(epochs=6, learning_rate=0.01)
    epochs = read_history(Path("reports/finetune.csv"))
    assert [e.epoch for e in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1].train_loss < 0.8 * epochs[0].train_loss
    best = min(epochs, key=lambda e: e.validation_loss)
    assert training["best_epoch"] == best.epoch == read_json(Path("reports/finetune.json"))["best_epoch"]


def test_dvc_metrics_shows_at_most_eight_numbers(built: Path) -> None:
    train(epochs=1)
    shown, report = (read_json(Path(f"reports/finetune.{name}json")) for name in ("metrics.", ""))
    assert 0 < len(shown) <= 8
    assert shown.items() <= report.items()
    assert not any(isinstance(value, str) for value in shown.values())


def test_the_saved_weights_are_from_the_best_epoch(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate is so high that the last epoch is not the best."""
    seen = []
    validate = Trainer._validate

    def record(self: Trainer, *args: Any) -> EpochMetrics:
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return validate(self, *args)

    monkeypatch.setattr(Trainer, "_validate", record)
    marked: list[int] = []
    monkeypatch.setattr(live.MlflowLogger, "samples", lambda self, captions, best: marked.append(best))
    training = train(epochs=4, learning_rate=0.9, warmup=0.7)
    assert training["best_epoch"] < 4
    assert marked[-1] == training["best_epoch"]
    kept = weights_hash(Path("models/finetune"))
    assert kept == read_json(Path("reports/finetune.json"))["model_sha256"]
    loaded = factory.load(Path("models/finetune")).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in seen[training["best_epoch"] - 1].items())


def test_training_continues_from_a_checkpoint_folder(built: Path) -> None:
    train(epochs=4, learning_rate=0.01)
    shutil.copytree("models/finetune", "base")
    before = read_history(Path("reports/finetune.csv"))
    training = train(checkpoint="base", epochs=1, learning_rate=1e-4)
    after = read_history(Path("reports/finetune.csv"))
    assert after[0].train_loss < before[0].train_loss - 0.5
    assert training["checkpoint_sha256"] == weights_hash(Path("base"))


def test_the_training_key_depends_on_data_params_checkpoint_and_dtype(built: Path) -> None:
    def key(start: str = "start", computed_in: str = "float32 on cpu") -> str:
        return str(session.training_facts(params.load(), start, computed_in)["training_key"])

    first = key()
    assert key() == first
    set_params(built, {"evaluate.generation.beams": 2, "runtime.feature_cache_gb": 3})
    assert key() == first
    assert key(computed_in="bfloat16 on cuda") != first
    set_params(built, {"finetune.epochs": 3})
    second = key()
    assert second != first
    with Path("data/dataset/train/captions.jsonl").open("a") as file:
        file.write(" ")
    assert key() != second
    assert key("other") != key()


def test_a_repeated_training_does_not_duplicate_its_mlflow_run(built: Path) -> None:
    for _ in range(2):
        training = train()
    store = runs.client()
    experiment = runs.experiment(store, "image-captioning")
    (mlflow_run,) = store.search_runs([experiment])
    assert mlflow_run.data.tags["training_key"] == training["training_key"]
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["finetune.scratch.heads"] == "2"
    epochs = read_history(Path("reports/finetune.csv"))
    history = store.get_metric_history(mlflow_run.info.run_id, "epoch/validation_loss")
    assert [(m.step, m.value) for m in history] == [(e.epoch, e.validation_loss) for e in epochs]
    steps = store.get_metric_history(mlflow_run.info.run_id, "step/train_loss")
    assert len({m.step for m in steps}) == len(steps)


def test_training_continues_if_mlflow_is_unreachable(built: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    runs.mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train()
    assert Path("models/finetune/model.safetensors").is_file()
    output = capsys.readouterr().err
    assert output.count("no live curves") == 1
    assert "http://127.0.0.1:9" in output


def test_a_checkpoint_with_larger_pictures_is_reported_with_the_fix(built: Path) -> None:
    set_params(built, {"ingest.image_size": 24})
    with pytest.raises(
        ConfigError, match=r"ingest\.image_size: is 24, but scratch takes pictures of 32 .* set it to 32"
    ):
        train()


def test_too_many_tokens_for_the_checkpoint_are_reported_with_the_fix(built: Path) -> None:
    train(max_tokens=20)
    shutil.copytree("models/finetune", "base")
    with pytest.raises(ConfigError, match=r"finetune\.max_tokens: is 100, but base has places for 64"):
        train(checkpoint="base", max_tokens=100)


def test_no_validation_pictures_are_reported_by_their_param(built: Path) -> None:
    set_params(built, {"build.validation": 0.0})
    build.run(params.load(), Namespace())
    with pytest.raises(ConfigError, match=r"build\.validation: is 0"):
        train()


def test_a_diverging_training_is_reported_and_the_last_model_stays(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    before = sha256_of(*OUTPUTS)
    step = Trainer._step

    def poisoned(self: Trainer, *args: Any) -> Any:
        if self.state.step == 4:
            self.model.output.bias.data[0] = float("inf")
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    message = r"finetune\.learning_rate: with 0\.002 the training diverged in step 5, epoch 2 \(.*pictures .*\.jpg, "
    with pytest.raises(ConfigError, match=message):
        train(learning_rate=2e-3)
    assert sha256_of(*OUTPUTS) == before


def test_a_wrong_checkpoint_is_refused_and_the_last_model_stays(built: Path) -> None:
    train()
    before = sha256_of(*OUTPUTS)
    (built / "other").mkdir()
    (built / "other" / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ConfigError, match="other/config.json: model_type is 'blip'"):
        train(checkpoint="other")
    assert sha256_of(*OUTPUTS) == before


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_a_frozen_image_encoder_does_not_change(
    built: Path, gigabytes: float, capsys: pytest.CaptureFixture[str]
) -> None:
    train()
    shutil.copytree("models/finetune", "base")
    training = train(checkpoint="base", freeze="image_encoder", feature_cache_gb=gigabytes, learning_rate=0.01)
    assert ("features take" in capsys.readouterr().out) == (gigabytes == 0)
    before, after = (factory.load(Path(name)).model.state_dict() for name in ("base", "models/finetune"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if "image_encoder" in name}
    assert len(changed) > 10
    assert training["params"]["freeze"] == "image_encoder"


def test_cached_and_uncached_features_train_the_same_weights_bit_for_bit(built: Path) -> None:
    """Also if the encoder's configuration has dropout: a frozen encoder applies none."""
    train(scratch={**params.load().finetune.scratch.model_dump(), "dropout": 0.3})
    shutil.copytree("models/finetune", "base")
    outputs = []
    for gigabytes in (0.0, 1.0):
        train(checkpoint="base", freeze="image_encoder", feature_cache_gb=gigabytes)
        outputs.append(sha256_of(*OUTPUTS))
    assert outputs[0] == outputs[1]
    assert len(list(Path(".work/features").glob("*.rows"))) == 1


def test_lora_training_saves_a_plain_checkpoint(built: Path) -> None:
    train(epochs=3, learning_rate=0.01)
    shutil.copytree("models/finetune", "base")
    plain = read_history(Path("reports/finetune.csv"))[-1].validation_loss
    train(checkpoint="base", epochs=3, lora={"rank": 4, "alpha": 16.0, "dropout": 0.0})
    report = read_json(Path("reports/finetune.json"))
    assert report["trained_parameters"] < 0.2 * report["parameters"]
    assert report["validation_loss"] < plain
    before, after = (factory.load(Path(name)).model.state_dict() for name in ("base", "models/finetune"))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attn" in name or "attention" in name for name in changed)

    lora_weights = weights_hash(Path("models/finetune"))
    train(gradient_checkpointing=True)
    assert weights_hash(Path("models/finetune")) == lora_weights


def test_augmentation_works_with_a_trained_and_a_frozen_encoder(built: Path) -> None:
    train()
    weights = weights_hash(Path("models/finetune"))
    shutil.copytree("models/finetune", "base")
    augmentation = {"crop": 0.2, "colour": 0.2, "mirror": True}
    train(augmentation=augmentation)
    assert weights_hash(Path("models/finetune")) != weights
    train(augmentation=augmentation, checkpoint="base", freeze="image_encoder")
    assert not Path(".work/features").exists()


def test_precision_smoothing_captions_and_checkpointing_follow_params(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train()
    assert plain["computed_in"] == ("bfloat16 on cuda" if torch.cuda.is_available() else "float32 on cpu")
    weights = weights_hash(Path("models/finetune"))
    train(captions_per_picture=1)
    assert weights_hash(Path("models/finetune")) != weights
    calls = []
    monkeypatch.setattr(modeling, "checkpoint", lambda f, *inputs, use_reentrant: calls.append(f) or f(*inputs))
    train(captions_per_picture=8, gradient_checkpointing=True)
    assert weights_hash(Path("models/finetune")) == weights
    assert calls
    assert train(gradient_checkpointing=False, precision="bfloat16")["computed_in"].startswith("bfloat16")
    assert weights_hash(Path("models/finetune")) != weights
    train(precision="auto", label_smoothing=0.2)
    assert weights_hash(Path("models/finetune")) != weights
    train(label_smoothing=0.0)
    assert weights_hash(Path("models/finetune")) == weights


def steps() -> tuple[list[tuple[int, float]], dict[str, torch.Tensor]]:
    """Return the loss at every tenth step of the last training, and the weights."""
    store = runs.client()
    (mlflow_run,) = store.search_runs(
        [runs.experiment(store, "image-captioning")],
        f"tags.training_key = '{read_json(Path('models/finetune/training.json'))['training_key']}'",
    )
    history = store.get_metric_history(mlflow_run.info.run_id, "step/train_loss")
    return [(m.step, m.value) for m in history], factory.load(Path("models/finetune")).model.state_dict()


@pytest.mark.parametrize(
    "launch", [{"processes": 2}, pytest.param({"processes": 1, "machines": 2}, marks=pytest.mark.slow)]
)
def test_two_processes_on_one_or_two_machines_train_like_one(built: Path, launch: dict[str, int]) -> None:
    """Tolerances after 20 steps: 1e-4 of the loss (relative) and 1e-4 of a weight (weights are about 0.1)."""
    train(**{"epochs": 7, "batch_size": 14, "scratch.dropout": 0.0, "learning_rate": 1e-3})
    single_losses, weights = steps()
    set_params(built, {f"runtime.launch.{key}": value for key, value in {**launch, "port": free_port()}.items()})
    other = [sys.executable, "-m", "pipeline.finetune", "--machine", "1"]
    second = subprocess.Popen(other, env=environment(OMP_NUM_THREADS="1")) if "machines" in launch else None
    done = run(built, sys.executable, "-m", "pipeline.finetune", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("models/finetune holds") == 1  # only the first process prints
    shared_losses, shared = steps()
    assert second is None or second.wait(60) == 0
    assert [step for step, _ in single_losses] == [step for step, _ in shared_losses] == [10, 20]
    assert [loss for _, loss in shared_losses] == pytest.approx([loss for _, loss in single_losses], rel=1e-4)
    for name, value in weights.items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-4), name
    assert read_json(Path("models/finetune/training.json"))["computed_in"] == "float32 on cpu, by 2 processes"


def test_an_unknown_machine_is_reported(built: Path) -> None:
    set_params(built, {"runtime.launch.processes": 2})
    done = run(built, sys.executable, "-m", "pipeline.finetune", "--machine", "1")
    assert done.returncode == 78
    assert "--machine 1: params.yaml has runtime.launch.machines: 1" in done.stderr


@pytest.mark.slow
def test_a_failure_of_one_process_fails_the_stage(built: Path) -> None:
    set_params(built, {"runtime.launch.processes": 2, "ingest.image_size": 24})
    done = run(built, sys.executable, "-m", "pipeline.finetune", OMP_NUM_THREADS="1")
    assert done.returncode == 78
    assert "set it to 32 or more" in done.stderr


@pytest.mark.parametrize(
    ("captions", "best_by", "expected"),
    [
        (0, "auto", "loss"),
        (5, "auto", "loss"),
        (300, "auto", "CIDEr-D"),
        (300, "loss", "loss"),
        (5, "cider", "CIDEr-D"),
    ],
)
def test_the_best_epoch_is_chosen_by_cider_if_enough_pictures_are_captioned(
    built: Path, captions: int, best_by: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.trainer.MIN_FOR_CIDER", 6)  # of 8 validation pictures
    training = train(epochs=4, learning_rate=0.01, validation_captions=captions, best_by=best_by)
    assert read_json(Path("reports/finetune.json"))["best_by"] == expected
    epochs = read_history(Path("reports/finetune.csv"))
    best = min(epochs, key=lambda epoch: epoch.validation_loss) if expected == "loss" else best_by_cider(epochs)
    assert training["best_epoch"] == best.epoch


GOLDEN = [5.4550, 5.4550, 5.4254, 5.3682, 5.3151, 5.2655, 5.2188, 5.1752, 5.1350, 5.0985,
          5.0661, 5.0380, 5.0141, 4.9944, 4.9788, 4.9669, 4.9584, 4.9528, 4.9496, 4.9482]  # fmt: skip


def test_twenty_epochs_have_the_golden_losses(built: Path) -> None:
    """Golden losses in float32 with a fixed seed. If they change, the result of every training changes."""
    train(epochs=20, batch_size=48, warmup=0.1, learning_rate=1e-3, **{"scratch.dropout": 0.0})
    losses = [epoch.train_loss for epoch in read_history(Path("reports/finetune.csv"))]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)
