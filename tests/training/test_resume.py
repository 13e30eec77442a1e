"""An interrupted training resumes, and ends with the same result as an uninterrupted one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import finetune
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.models.git.checkpoint import GitCheckpoint
from pipeline.models.weights import weights_hash
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.runtime.checksummed import CHECKSUMS, checksummed_folder, is_intact
from pipeline.synthetic.sample import write_sample
from pipeline.tracking import live
from pipeline.training import preflight, session
from pipeline.training.optimization import CaptionLoss
from pipeline.training.processes import Processes
from pipeline.training.trainer import StoppedError, Trainer
from pipeline.training.validation import Validation
from tests.conftest import TINY, environment, run, set_params

OUTPUTS = [Path("models/finetune"), Path("reports/finetune.json"), Path("reports/finetune.csv")]
STEPS = 9  # three epochs of three


class CrashError(Exception):
    pass


@pytest.fixture
def built(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Path:
    """A workspace with a small data set, whose training writes a state after each step and has dropout."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace)
    set_params(workspace, {"finetune.epochs": 3, "runtime.state_minutes": 0})
    return workspace


def train() -> str:
    return finetune.run(params.load(), Namespace())


@pytest.fixture
def uninterrupted(built: Path) -> str:
    """The hash of the outputs of an uninterrupted training."""
    train()
    return sha256_of(*OUTPUTS)


def crash_in(method: str, step: int) -> None:
    """Train, and crash in a method after a number of steps."""
    original = getattr(Trainer, method)

    def crash(self: Trainer, *args: Any) -> Any:
        if self.state.step >= step:
            raise CrashError
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, method, crash)
        with pytest.raises(CrashError):
            train()


def states(workspace: Path) -> list[Path]:
    return sorted(workspace.glob(".work/training/*/step-*"))


@pytest.mark.parametrize(("method", "step"), [("_step", 1), ("_step", 4), ("_validate", 3)])
def test_training_resumes_after_a_crash_bit_for_bit(
    built: Path, uninterrupted: str, method: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    crash_in(method, step)
    assert len(states(built)) == min(step, 2)
    capsys.readouterr()
    train()
    assert f"resumes from step {step} of {STEPS}" in capsys.readouterr().out
    assert sha256_of(*OUTPUTS) == uninterrupted
    assert not list(built.glob(".work/training/*"))  # a completed training leaves no states


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1}, "freeze": "image_encoder"},
        pytest.param(
            {"new_tokens": 20, "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}, "freeze": "image_encoder"},
            marks=pytest.mark.slow,
        ),
        {"augmentation": {"crop": 0.3, "colour": 0.2, "mirror": True}, "accumulation": 2},
    ],
)
def test_resuming_is_exact_with_lora_augmentation_and_accumulation(built: Path, changes: dict[str, Any]) -> None:
    train()
    shutil.copytree(OUTPUTS[0], "base")
    set_params(built, {"finetune.checkpoint": "base", **{f"finetune.{key}": value for key, value in changes.items()}})
    train()
    expected = sha256_of(*OUTPUTS)
    crash_in("_step", 4)
    train()
    assert sha256_of(*OUTPUTS) == expected


def test_a_crash_while_saving_the_best_epoch_keeps_the_previous_best(
    built: Path, uninterrupted: str, capsys: Any
) -> None:
    save = GitCheckpoint.save

    def crash(self: GitCheckpoint, folder: Path, *weights: Any) -> None:
        save(self, folder, *weights)
        if states(built)[-1].name == "step-000000006":
            raise CrashError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GitCheckpoint, "save", crash)
        with pytest.raises(CrashError):
            train()
    capsys.readouterr()
    train()
    assert "resumes from step 6 of" in capsys.readouterr().out
    assert sha256_of(*OUTPUTS) == uninterrupted


def test_a_crash_while_writing_a_state_costs_one_step(built: Path, uninterrupted: str, capsys: Any) -> None:
    original = shutil.copytree

    def full(source: Any, target: Any, **others: Any) -> Any:
        if "step-000000005" in str(target):
            raise OSError(28, "No space left on device")
        return original(source, target, **others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "copytree", full)
        with pytest.raises(OSError, match="No space left"):
            train()
    assert [path.name for path in states(built)] == ["step-000000003", "step-000000004"]
    assert all(is_intact(path) for path in states(built))
    train()
    assert "resumes from step 4 of" in capsys.readouterr().out
    assert sha256_of(*OUTPUTS) == uninterrupted


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json",
                                  "best/model.safetensors", CHECKSUMS])  # fmt: skip
@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_a_damaged_state_is_recognised(tmp_path_factory: pytest.TempPathFactory, name: str, damage: str) -> None:
    folder = tmp_path_factory.mktemp("states") / "step-1"
    with checksummed_folder(folder) as place:
        for file in ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json",
                     "best/model.safetensors"):  # fmt: skip
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_bytes(random.Random(0).randbytes(1000))
    assert is_intact(folder)
    if damage == "lose":
        (folder / name).unlink()
    else:
        content = bytearray((folder / name).read_bytes())
        content[random.Random(name).randrange(len(content))] ^= 1 << random.Random(name).randrange(8)
        (folder / name).write_bytes(content)
    assert not is_intact(folder)


def test_the_state_before_a_damaged_one_is_used(built: Path, uninterrupted: str, capsys: Any) -> None:
    crash_in("_step", 5)
    (states(built)[-1].parent / ".step-000000099.partial").mkdir()  # left by a process killed while it wrote a state
    newest = states(built)[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    train()
    output = capsys.readouterr().out
    assert f"{newest.relative_to(built)}: is damaged" in output
    assert "resumes from step 4 of" in output
    assert sha256_of(*OUTPUTS) == uninterrupted


def test_another_training_starts_from_scratch_and_keeps_the_interrupted_one(
    built: Path, uninterrupted: str, capsys: Any
) -> None:
    weights = weights_hash(OUTPUTS[0])
    crash_in("_step", 5)
    set_params(built, {"finetune.learning_rate": 2e-3})
    capsys.readouterr()
    train()
    output = capsys.readouterr().out
    assert "starts from the beginning" in output
    assert "resumes" not in output
    set_params(
        built, {"finetune.learning_rate": "auto", "runtime.state_minutes": 5}
    )  # the interval between states does not change the result
    train()
    assert "resumes from step 5 of" in capsys.readouterr().out
    assert weights_hash(OUTPUTS[0]) == weights


def test_early_stopping_counts_epochs_before_a_crash(built: Path, capsys: Any) -> None:
    set_params(built, {"finetune.epochs": 9, "finetune.patience": 1, "finetune.learning_rate": 0.9,
                       "finetune.best_by": "loss", "finetune.warmup": 0.5})  # fmt: skip
    last = train()
    expected = sha256_of(*OUTPUTS)
    epochs = len(Path("reports/finetune.csv").read_text().splitlines()) - 1
    assert epochs < 9
    assert f"of {epochs}, the best" in last
    crash_in("_step", 3 * (epochs - 1) + 1)
    train()
    assert sha256_of(*OUTPUTS) == expected


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_state(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in states(folder)):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("method", ["captions", "loss"])
def test_a_stop_during_validation_resumes_with_that_validation(
    built: Path, uninterrupted: str, method: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(Validation, method)

    def ask(self: Validation, *args: Any, **others: Any) -> Any:
        trainer = self._stop_if_asked.__self__
        if trainer.state.step == 6:
            trainer._asked = lambda: True
        return original(self, *args, **others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Validation, method, ask)
        patched.setattr(session, "fit", lambda training, logger: training.trainer.fit(logger, lambda: False))
        with pytest.raises(StoppedError):
            train()
    assert [path.name for path in states(built)] == ["step-000000005", "step-000000006"]
    capsys.readouterr()
    shown = []
    monkeypatch.setattr(live.MlflowLogger, "samples", lambda self, captions, best: shown.append(len(captions)))
    train()
    assert "resumes from step 6 of" in capsys.readouterr().out
    assert sha256_of(*OUTPUTS) == uninterrupted
    assert shown == [2, 3]  # each epoch's captions once


@pytest.mark.parametrize(
    "signal_", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGINT))]
)
def test_training_resumes_after_a_signal(built: Path, signal_: signal.Signals) -> None:
    set_params(built, {"finetune.epochs": 12, "runtime.state_minutes": 0 if signal_ == signal.SIGKILL else 60})
    command = (sys.executable, "-m", "pipeline.finetune")
    process = start(built, *command)
    if signal_ == signal.SIGKILL:
        wait_for_state(built, 10, process)
    else:
        assert process.stdout
        line = next(line for line in process.stdout if "epoch   3/12" in line)
        assert line
    os.killpg(process.pid, signal_)
    output = process.communicate(timeout=60)[0]
    if signal_ != signal.SIGKILL:
        assert process.returncode == 75, output
        assert "is saved; `dvc repro` resumes from there" in output
        assert len(states(built)) == 1
    resumed_run = run(built, *command)
    assert "resumes from step" in resumed_run.stdout
    resumed = sha256_of(*OUTPUTS)
    train()
    assert sha256_of(*OUTPUTS) == resumed


def test_gradient_accumulation_learns_the_same(built: Path) -> None:
    set_params(built, {"finetune.scratch.dropout": 0.0})
    histories = []
    for parts in (1, 4):
        set_params(built, {"finetune.accumulation": parts})
        train()
        histories.append([float(x) for x in Path("reports/finetune.csv").read_text().splitlines()[-1].split(",")[1:3]])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)
    set_params(built, {"finetune.accumulation": 3})
    with pytest.raises(ConfigError, match="`accumulation: 3` does not divide `batch_size` 16"):
        train()


def test_a_batch_that_does_not_fit_is_reported_with_a_fitting_accumulation(built: Path, monkeypatch: Any) -> None:
    forward = CaptionLoss.forward

    def small_memory(self: CaptionLoss, batch: Any) -> Any:
        if self.model.training and len(batch.pixel_values) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes")
        return forward(self, batch)

    set_params(built, {"finetune.accumulation": 1})
    monkeypatch.setattr(CaptionLoss, "forward", small_memory)
    message = (
        r"finetune\.batch_size: 16 pictures at a time do not fit into memory, 4 do; set finetune\.accumulation to 4"
    )
    with pytest.raises(ConfigError, match=message):
        train()


@contextmanager
def memory_for(pictures: int) -> Iterator[None]:
    """A training step of more pictures runs out of memory."""
    forward = CaptionLoss.forward

    def limited(self: CaptionLoss, batch: Any) -> Any:
        if self.model.training and len(batch.pixel_values) > pictures:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CaptionLoss, "forward", limited)
        yield


def parts() -> int:
    return int(read_json(OUTPUTS[0] / "training.json")["parts"])


@pytest.mark.slow
def test_accumulation_is_found_by_itself_and_kept_by_a_resumed_run(built: Path, capsys: Any) -> None:
    set_params(built, {"finetune.accumulation": "auto"})
    train()
    assert parts() == 1
    whole = weights_hash(OUTPUTS[0])
    with memory_for(5):
        train()
    assert parts() == 4
    assert "9 steps of 16 pictures in 4 parts" in capsys.readouterr().out
    found = weights_hash(OUTPUTS[0])
    for step, memory in ((4, 16), (4, 5)):
        with memory_for(5):
            crash_in("_step", step)
        with memory_for(memory):
            train()
        assert (parts(), weights_hash(OUTPUTS[0])) == (4, found)
    with memory_for(5):
        crash_in("_step", 4)
    capsys.readouterr()
    with memory_for(2):
        train()
    assert "memory has shrunk: steps have 8 parts now, not 4" in capsys.readouterr().out
    assert parts() == 8
    for number, expected in ((1, whole), (4, found)):
        set_params(built, {"finetune.accumulation": number})
        train()
        assert weights_hash(OUTPUTS[0]) == expected
    with memory_for(0), pytest.raises(ConfigError, match="not even one picture's captions fit"):
        train()


def test_all_processes_split_a_step_if_one_lacks_memory(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_params(built, {"finetune.accumulation": "auto"})
    tried: list[int] = []

    def fits(trainer: Trainer, dtype: Any, captioned: Sequence[Any]) -> int:
        tried.append(len(captioned))
        return 0

    monkeypatch.setattr(preflight, "_try", fits)
    monkeypatch.setattr(Processes, "any", lambda self, value: value or len(tried) == 1)
    train()
    assert tried == [16, 8, 8]  # the last one is timed
    assert parts() == 2


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux to mount a small file system"
)
def test_a_full_disk_is_reported_in_one_line_and_the_last_state_is_intact(built: Path, uninterrupted: str) -> None:
    small = built / ".work"
    shutil.rmtree(small)
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", small], check=True)
    try:
        set_params(built, {"finetune.epochs": 6})
        done = run(built, sys.executable, "-m", "pipeline.finetune")
        assert done.returncode == 75, done.stderr
        assert "the disk is full at .work/training/" in done.stderr.splitlines()[-1]
        kept = states(built)
        assert kept
        assert all(is_intact(path) for path in kept)
        (small / "room").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=64M", small], check=True)
        resumed_run = run(built, sys.executable, "-m", "pipeline.finetune")
        assert f"resumes from step {int(kept[-1].name[5:])} of" in resumed_run.stdout
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kills", "epochs", "self_critical"),
    [pytest.param(20, 60, 0, id="cross-entropy"), pytest.param(5, 1, 30, id="self-critical")],
)
def test_kills_at_random_moments_do_not_change_the_result(
    clone: Callable[[], Path], kills: int, epochs: int, self_critical: int
) -> None:
    """Kills hit steps, validation and the writing of states; `dvc repro` resumes each time."""
    killed = clone()
    shutil.rmtree(killed / "data/raw")
    write_sample(killed / "data/raw/small", pictures=90, seed=1)
    changes = {"ingest.sources": ["small"], "finetune.epochs": epochs, "runtime.state_minutes": 0}
    set_params(killed, {**TINY, **changes, "finetune.self_critical.epochs": self_critical})
    for words in (["add", "data/raw/small"], ["repro", "build"]):
        done = run(killed, "dvc", *words)
        assert done.returncode == 0, done.stderr
    undisturbed = killed.parent / "left alone"
    shutil.copytree(killed, undisturbed, symlinks=True)
    command = ("dvc", "repro", "finetune")
    assert run(undisturbed, *command).returncode == 0
    rng = random.Random(20)
    for kill in range(kills):
        process = start(killed, *command)
        before = {path.name for path in states(killed)}
        deadline = time.monotonic() + 120
        while {path.name for path in states(killed)} == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.4))
        assert process.poll() is None, process.communicate()[0]
        if kill % 2:  # all processes at once, like a power failure; otherwise the stage only, without DVC
            os.killpg(process.pid, signal.SIGKILL)
        else:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.communicate()
    done = run(killed, *command)
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stdout
    outputs = [sha256_of(*(folder / output for output in OUTPUTS)) for folder in (undisturbed, killed)]
    assert outputs[0] == outputs[1]
    assert "up to date" in run(killed, "dvc", "status", "finetune").stdout
