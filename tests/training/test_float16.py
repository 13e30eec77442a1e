"""Training in float16: gradients keep their digits, overflows are skipped, and the loss scale is part of a state."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.models import factory
from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.inputs import Batch, caption_tokens, collate
from pipeline.models.precision import autocast, loss_scaler
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.tracking import live
from pipeline.training import trainer
from pipeline.training.descent import descend, is_overflow
from pipeline.training.history import read_history
from pipeline.training.optimization import CaptionLoss, adamw
from pipeline.training.processes import Processes
from pipeline.training.trainer import Trainer
from tests.conftest import run, set_params
from tests.training.crashes import OUTPUTS, crash_at, train

CPU, HALF = torch.device("cpu"), torch.float16
TOO_LARGE = 2.0**23  # a loss scale with which gradients exceed the range of float16
CAPTIONS = [["a red boat", "the boat"], ["a blue house in town"], ["two dogs run", "dogs in a meadow"]]


def created(name: str) -> Checkpoint:
    torch.manual_seed(0)
    sizes = params.load().finetune.scratch.model_copy(update={"dropout": 0.0})
    checkpoint = factory.create(name, sizes, [c for several in CAPTIONS for c in several], 20)
    checkpoint.model.set_caption_length(20)
    checkpoint.model.freeze_image_encoder()
    checkpoint.model.eval()
    return checkpoint


def batch_of(checkpoint: Checkpoint) -> Batch:
    torch.manual_seed(1)
    side = checkpoint.image_size
    pixels = torch.randint(0, 255, (3, 3, side, side), dtype=torch.uint8)
    return collate(checkpoint, pixels, caption_tokens(checkpoint, CAPTIONS, 20))


def gradient(checkpoint: Checkpoint, dtype: torch.dtype, tokens: float, is_scaled: bool = True) -> torch.Tensor:
    """The gradient of a step whose loss is divided by `tokens`, times `tokens`."""
    scaler = loss_scaler(CPU, dtype if is_scaled else torch.float32)
    loss, optimizer = CaptionLoss(checkpoint.model, dtype), adamw(checkpoint.model, 0.0, 0.0)
    batch = batch_of(checkpoint)
    descend(loss, [batch], 1.0, tokens, Processes(Accelerator(cpu=True)), optimizer, scaler, math.inf)
    return torch.cat([p.grad.flatten() for p in checkpoint.model.parameters() if p.grad is not None]) * tokens


@pytest.mark.parametrize(
    "name",
    [
        "scratch",
        "cnn-attention",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("cnn-rnn", "cnn-lstm", "cnn-git")),
    ],
)
def test_every_architecture_has_nearly_the_gradient_and_captions_of_float32(workspace: Path, name: str) -> None:
    checkpoint = created(name)
    exact, half = gradient(checkpoint, torch.float32, 15.0), gradient(checkpoint, HALF, 15.0)
    assert half.isfinite().all()
    assert not torch.equal(half, exact)
    assert (half - exact).norm() < 0.02 * exact.norm()
    pixels = batch_of(checkpoint).pixel_values
    for decoding in (Decoding(beams=3), Decoding(samples=2)):
        with autocast(CPU, HALF):
            assert checkpoint.model.encode(pixels).isfinite().all()
            tokens = checkpoint.model.generate_captions(pixels, None, decoding)
        assert tokens.shape[0] == 3 * max(1, decoding.samples)


def test_scaling_keeps_gradients_that_float16_would_lose(workspace: Path) -> None:
    checkpoint = created("scratch")
    exact = gradient(checkpoint, torch.float32, 1e6)
    scaled, plain = (gradient(checkpoint, HALF, 1e6, is_scaled) for is_scaled in (True, False))
    assert (scaled - exact).norm() < 0.05 * exact.norm()
    assert (plain - exact).norm() > 0.2 * exact.norm()


def test_only_an_overflow_that_less_scaling_may_mend_is_one() -> None:
    scaler, last = loss_scaler(CPU, HALF), torch.amp.GradScaler("cpu", init_scale=1.0)
    assert is_overflow(scaler, 3.0, math.inf)
    assert is_overflow(scaler, 3.0, math.nan)
    assert not is_overflow(scaler, 3.0, 5.0)
    assert not is_overflow(scaler, math.nan, math.nan)  # the forward pass overflowed
    assert not is_overflow(last, 3.0, math.inf)
    assert not is_overflow(loss_scaler(CPU, torch.bfloat16), 3.0, math.inf)
    assert not is_overflow(loss_scaler(CPU, torch.float32), 3.0, math.inf)


@pytest.fixture
def built(
    workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A workspace whose training in float16 starts with too large a loss scale, so that its first steps are skipped."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    set_params(workspace, {"finetune.epochs": 4, "finetune.precision": "float16", "runtime.state_minutes": 0})

    def scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device.type, TOO_LARGE, growth_interval=4, enabled=dtype == HALF)

    monkeypatch.setattr(trainer, "loss_scaler", scaler)
    return workspace


def test_a_step_that_overflows_is_skipped_counted_and_logged(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[float, int, float, bool]] = []
    original = Trainer._step

    def watched(self: Trainer, *args: Any) -> Any:
        before = [p.detach().clone() for p in self.model.parameters()]
        found = original(self, *args)
        same = all(torch.equal(one, other) for one, other in zip(before, self.model.parameters(), strict=True))
        rate = self.schedule.get_last_lr()[0]
        steps.append((self.scaler.get_scale(), self.state.skipped_steps, rate, same))
        return found

    logged: list[dict[str, float]] = []
    monkeypatch.setattr(Trainer, "_step", watched)
    monkeypatch.setattr(live.MlflowLogger, "metrics", lambda self, values, step: logged.append(values))
    train()
    assert len(steps) == 12
    before = (TOO_LARGE, 0, 0.0, True)
    for step in steps:
        if step[1] > before[1]:
            assert step == (before[0] / 2, before[1] + 1, before[2], True)
        else:
            assert step[0] >= before[0]
            assert step[2] != before[2]
        before = step
    skipped = before[1]
    assert 1 <= skipped < 9
    assert not all(same for *_, same in steps)  # it goes on to learn
    (tenth,) = [values for values in logged if "step/skipped_steps" in values]
    assert (tenth["step/loss_scale"], tenth["step/skipped_steps"]) == steps[9][:2]
    assert all(math.isfinite(epoch.validation_loss) for epoch in read_history(OUTPUTS[2]))


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 2},
        pytest.param(
            {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1}, "freeze": "image_encoder"}, marks=pytest.mark.slow
        ),
        pytest.param({"epochs": 2, "self_critical.epochs": 2, "self_critical.samples": 3}, marks=pytest.mark.slow),
    ],
)
def test_resuming_restores_the_loss_scale_bit_for_bit(built: Path, changes: dict[str, Any]) -> None:
    set_params(built, {"finetune.precision": "float32"})
    train()
    shutil.copytree(OUTPUTS[0], "base")
    settings = {"precision": "float16", "checkpoint": "base", **changes}
    set_params(built, {f"finetune.{key}": value for key, value in settings.items()})
    train()
    expected = sha256_of(*OUTPUTS)
    assert read_json(OUTPUTS[0] / "training.json")["computed_in"] == "float16 on cpu"
    for step in (1, 10):
        crash_at(step)
        (newest,) = sorted(built.glob(".work/training/*/step-*"))[-1:]
        content = read_json(newest / "state.json")
        if "lora" not in changes:  # its gradients are too small to overflow
            assert content["scaler"]["scale"] < TOO_LARGE
        assert content["progress"]["skipped_steps"] >= 1
        train()
        assert sha256_of(*OUTPUTS) == expected


def test_gradients_that_are_never_finite_end_the_training_in_one_line(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CaptionLoss.forward

    def steep(self: CaptionLoss, *args: Any) -> Any:
        loss, tokens = original(self, *args)
        if self.training and loss.requires_grad:
            loss.register_hook(lambda grad: grad * math.inf)
        return loss, tokens

    set_params(built, {"finetune.epochs": 20})
    monkeypatch.setattr(CaptionLoss, "forward", steep)
    with pytest.raises(ConfigError, match=r"diverged in step 24, epoch 8 .*gradient norm (nan|inf)"):
        train()


@pytest.mark.slow
def test_two_processes_train_like_one(built: Path) -> None:
    """The loss scale is that of every user here, because a subprocess is not patched."""
    losses = []
    set_params(built, {"finetune.scratch.dropout": 0.0, "finetune.batch_size": 14})
    for processes in (1, 2):
        set_params(built, {"runtime.launch.processes": processes})
        done = run(built, sys.executable, "-m", "pipeline.finetune", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        losses.append([epoch.validation_loss for epoch in read_history(OUTPUTS[2])])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
