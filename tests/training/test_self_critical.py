"""Self-critical training: its gradient, its reward, its guards, and resuming it."""

from __future__ import annotations

import math
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import SelfCritical
from pipeline.evaluation.fluency import Endings, is_loop
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models import factory
from pipeline.models.inputs import Batch, caption_tokens, collate
from pipeline.runtime.atomic_files import sha256_of
from pipeline.training.history import EpochMetrics, flaws, kept_epoch, read_history
from pipeline.training.optimization import CaptionLoss
from pipeline.training.processes import Processes
from pipeline.training.self_critical import END, EndedError, Rewards, Sampler, advantages
from pipeline.training.trainer import Trainer
from tests.conftest import run, set_params
from tests.training.crashes import OUTPUTS, crash_at, train

STEPS = 3  # an epoch
CAPTIONS = [["a red boat", "the boat"], ["a blue house in town"], ["two dogs run", "dogs in a meadow"]]
SETTINGS = SelfCritical(
    epochs=2, samples=4, learning_rate="auto", reward="CIDEr-D", cross_entropy=0.25, least_distinct=0.9
)


def examples() -> list[Any]:
    return [Namespace(file_name=f"{i}.jpg", captions=captions) for i, captions in enumerate(CAPTIONS)]


def sampler(checkpoint: Any, **changes: Any) -> Sampler:
    settings = SETTINGS.model_copy(update=changes)
    return Sampler(checkpoint, examples(), settings, Processes(Accelerator(cpu=True)), torch.float32)


def created(workspace: Path, name: str = "scratch") -> Any:
    torch.manual_seed(0)
    sizes = params.load().finetune.scratch.model_copy(update={"dropout": 0.0})
    checkpoint = factory.create(name, sizes, [c for several in CAPTIONS for c in several], 20)
    checkpoint.model.set_caption_length(20)
    if name != "scratch":  # rounding alone changes the gradient of so deep a CNN on noise
        checkpoint.model.freeze_image_encoder()
    return checkpoint


def part(checkpoint: Any) -> Any:
    side = checkpoint.image_size
    pixels = torch.randint(0, 255, (3, 3, side, side), dtype=torch.uint8)
    return collate(checkpoint, pixels, caption_tokens(checkpoint, CAPTIONS, 20))


@pytest.mark.parametrize("name", ["scratch", "cnn-rnn", "cnn-lstm", "cnn-attention", "cnn-git"])
def test_the_gradient_is_that_of_the_definition(workspace: Path, name: str) -> None:
    checkpoint = created(workspace, name)
    batch = part(checkpoint)
    tokens = int(batch.attention_mask[:, 1:].sum())
    drawer = sampler(checkpoint)
    drawer._rewards = lambda picture, captions, ended: [float(len(c) % 7 + picture) for c in captions]  # type: ignore[assignment]
    ((found,), _, _, spread) = drawer.weighted([0, 1, 2], [batch], 1.0, tokens)
    assert spread > 0
    checkpoint.model.eval()  # the CNN captioners have a dropout of their own
    CaptionLoss(checkpoint.model)(found.batch, found.weights)[0].backward()
    ours = {n: p.grad.clone() for n, p in checkpoint.model.named_parameters() if p.grad is not None}
    checkpoint.model.zero_grad()
    rows, mask, of = found.batch.input_ids, found.batch.attention_mask, found.batch.picture_of
    texts = checkpoint.tokenizer.batch_decode(rows[found.truths :], skip_special_tokens=True)
    rewards = torch.tensor(
        [float(len(t.strip()) % 7 + p) for t, p in zip(texts, of[found.truths :].tolist(), strict=True)]
    )
    drawn = int(mask[found.truths :, 1:].sum())
    loss = torch.zeros(())
    for row in range(len(rows)):
        ids = rows[row : row + 1, : int(mask[row].sum())]
        pixels = batch.pixel_values[of[row] : of[row] + 1]
        one = torch.zeros(1, dtype=torch.long)
        nll, _ = checkpoint.model.caption_loss(pixels, ids, torch.ones_like(ids), one)
        if row < found.truths:
            loss = loss + 0.25 * nll / tokens
        else:
            k = row - found.truths
            others = [j for j in range(4 * (k // 4), 4 * (k // 4) + 4) if j != k]
            loss = loss + 0.75 * (rewards[k] - rewards[others].mean()) * nll / drawn
    loss.backward()
    for n, p in checkpoint.model.named_parameters():
        if n in ours:
            assert torch.allclose(ours[n], p.grad, atol=2e-5, rtol=1e-3), n


def test_the_reward_is_our_metric_with_the_end_as_a_word() -> None:
    rewards = Rewards(examples(), "CIDEr-D")
    words = [[[*ptb_tokenize(c), END] for c in several] for several in CAPTIONS]
    said = ["a red boat", "dogs in a boat", ""]
    found = rewards(0, said, [True] * 3)
    expected = [cider_d([[*ptb_tokenize(text), END]], [words[0]], idf_from=words)[0] for text in said]
    assert found == pytest.approx(expected)
    assert found[0] > found[1] > 0
    assert rewards(0, said, [False] * 3) == [0, 0, 0]
    assert Rewards(examples(), "ROUGE-L")(0, ["a red boat", "x"], [True, True])[0] == pytest.approx(10)


def test_equal_rewards_have_no_advantage() -> None:
    found = advantages(torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 6.0]]))
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == pytest.approx([-3.0, -1.5, 4.5])


def test_logits_that_are_not_finite_end_it(workspace: Path) -> None:
    checkpoint = created(workspace)
    with torch.no_grad():
        checkpoint.model.output.bias.fill_(math.nan)
    with pytest.raises(EndedError, match="logits are not finite"):
        sampler(checkpoint).weighted([0, 1, 2], [part(checkpoint)], 1.0, 10.0)


def test_captions_that_break_off_or_repeat_themselves_are_recognised() -> None:
    endings = Endings([["a", "man", "with", "a", "dog"], ["a", "dog"], []])
    captions = [["a", "man", "with"], ["a", "dog"], [], ["zebra"]]
    assert [endings.is_unfinished(caption) for caption in captions] == [True, False, True, False]
    assert [is_loop(c.split()) for c in ("a a", "a b c a b c", "a b a c", "")] == [True, True, False, False]


def test_a_self_critical_epoch_is_kept_only_if_it_is_better_and_sound() -> None:
    def epoch(
        number: int, cider: float, distinct: float = 1.0, loops: float = 0.0, reward: float = 1.0
    ) -> EpochMetrics:
        return EpochMetrics(number, 1.0, 9.0, 1e-3, cider, 0.1, distinct, 0.0, loops, reward)

    first = EpochMetrics(1, 1.0, 1.0, 1e-3, 1.0, 0.1, 1.0, 0.0, 0.0)
    assert kept_epoch([first, epoch(2, 0.9)], 1, True, 0.9).epoch == 1
    assert kept_epoch([first, epoch(2, 1.1), epoch(3, 1.05)], 1, True, 0.9).epoch == 2
    assert kept_epoch([first, epoch(2, 1.1, distinct=0.8)], 1, False, 0.9).epoch == 1
    assert kept_epoch([first, epoch(2, 1.1, loops=0.2)], 1, True, 0.9).epoch == 1
    assert flaws(epoch(2, 1.1, distinct=0.8), first, 0.9) == "distinct captions 80%, before 100%"


@pytest.fixture
def built(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Path:
    """A workspace with a small data set, two epochs with cross-entropy and two self-critical ones."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    changes = {"epochs": 2, "learning_rate": 0.01, "self_critical.epochs": 2, "self_critical.samples": 3}
    set_params(workspace, {f"finetune.{k}": v for k, v in changes.items()} | {"runtime.state_minutes": 0})
    return workspace


def test_it_resumes_bit_for_bit_and_does_not_change_the_epochs_before(built: Path) -> None:
    train()
    expected, with_it = sha256_of(*OUTPUTS), read_history(OUTPUTS[2])
    assert [epoch.is_self_critical for epoch in with_it] == [False, False, True, True]
    for step in (2 * STEPS, 2 * STEPS + 1, 3 * STEPS + 2):
        crash_at(step)
        train()
        assert sha256_of(*OUTPUTS) == expected
    set_params(built, {"finetune.self_critical.epochs": 0})
    train()
    without = read_history(OUTPUTS[2])
    assert [(e.train_loss, e.validation_loss) for e in without] == [
        (e.train_loss, e.validation_loss) for e in with_it[:2]
    ]
    assert "reward" not in OUTPUTS[2].read_text()


def test_the_memory_of_its_steps_is_tried_before_the_first_one(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, pictures = CaptionLoss.forward, 5
    lengths: list[int] = []

    def limited(self: CaptionLoss, batch: Batch, weights: torch.Tensor | None = None) -> Any:
        if self.model.training and weights is not None:
            lengths.append(batch.input_ids.shape[1])
            if len(batch.picture_of.unique()) > pictures:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch, weights)

    monkeypatch.setattr(CaptionLoss, "forward", limited)
    with pytest.raises(ConfigError, match="16 pictures at a time do not fit into memory, 4 do; set finetune.accumulat"):
        train()
    assert set(lengths) == {params.load().finetune.max_tokens}
    set_params(built, {"finetune.accumulation": "auto"})
    train()
    time = r"about \d+ (s|min)"
    assert re.search(f"in 4 parts, 2 epochs of 3; {time}, then 6 self-critical steps, {time}", capsys.readouterr().out)
    pictures = 0
    with pytest.raises(ConfigError, match=r"self_critical\.samples: 3 samples of \d+ tokens do not fit into memory"):
        train()


def test_a_divergence_keeps_the_best_epoch(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = Trainer._with_samples

    def spoil(self: Trainer, *args: Any) -> Any:
        found = step(self, *args)
        found[0].weights.fill_(math.nan)
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_with_samples", spoil)
        train()
    output = "".join(capsys.readouterr())
    assert "self-critical training has ended: it diverged in step 7" in output
    assert len(read_history(OUTPUTS[2])) == 2
    assert OUTPUTS[0].is_dir()


def test_equal_rewards_end_it_in_one_line(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rewards, "__call__", lambda self, picture, captions, ended: [1.0] * len(captions))
        train()
    assert "nothing to learn from" in "".join(capsys.readouterr())
    assert len(read_history(OUTPUTS[2])) == 2


@pytest.mark.slow
def test_lora_and_an_unfrozen_encoder_with_augmentation_take_self_critical_steps(built: Path) -> None:
    train()
    shutil.copytree(OUTPUTS[0], "base")
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    for changes in (
        {"checkpoint": "base", "lora": lora, "freeze": "image_encoder", "epochs": 1},
        {"lora": {**lora, "rank": 0}, "freeze": "none", "accumulation": 2, "augmentation.crop": 0.2},
    ):
        set_params(built, {f"finetune.{key}": value for key, value in changes.items()})
        train()
        expected = sha256_of(*OUTPUTS)
        assert len(read_history(OUTPUTS[2])) == 3
        crash_at(4)
        train()
        assert sha256_of(*OUTPUTS) == expected


@pytest.mark.slow
def test_two_processes_take_self_critical_steps(built: Path) -> None:
    set_params(built, {"runtime.launch.processes": 2})
    done = run(built, sys.executable, "-m", "pipeline.finetune")
    assert done.returncode == 0, done.stderr
    assert [epoch.is_self_critical for epoch in read_history(OUTPUTS[2])] == [False, False, True, True]
