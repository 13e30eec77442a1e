"""A training from params to outputs: set up, resume, fit, write.

The modules imported here take seconds to load, so `pipeline/finetune.py` imports this one only when it trains.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.params import Params
from pipeline.data.dataset import Example
from pipeline.models import factory
from pipeline.models.base import Checkpoint
from pipeline.models.device import best_device
from pipeline.models.precision import compute_dtype, describe
from pipeline.models.threads import suit_threads
from pipeline.models.weights import weights_hash
from pipeline.runtime import costs, entrypoint
from pipeline.runtime.atomic_files import remove, sha256_of, write_json
from pipeline.runtime.import_closure import deciding
from pipeline.runtime.state_store import StateStore
from pipeline.runtime.torch_memory import keep_freed_memory
from pipeline.training import preflight
from pipeline.training.data import open_pictures, read_splits
from pipeline.training.history import write_history
from pipeline.training.logger import TrainingLogger
from pipeline.training.processes import Processes
from pipeline.training.trainer import StoppedError, Trainer

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "pillow", "numpy")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Session:
    """A training that is set up.

    Attributes:
        trainer: the loop.
        facts: everything that the result depends on, and `training_key`, its hash.
        folder: where states are kept until the training has ended.
    """

    trainer: Trainer
    facts: dict[str, Any]
    folder: Path

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.trainer.processes.is_first


def set_up(params: Params, locate: Callable[[str, str | None], Path], name: str = "finetune") -> Session:
    """Load data and model, and run all checks that are possible before the first step.

    Args:
        params: all params.
        locate: returns the folder of `finetune.checkpoint` at `finetune.revision`.
        name: of the stage, stands before every line that is printed.

    Raises:
        ConfigError: a param does not fit the data, the checkpoint or this machine.
        TemporaryError: the checkpoint can't be downloaded now.
    """
    keep_freed_memory()
    settings = params.finetune
    device = best_device()
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # The first process fills the feature cache for all, and other machines may start hours later.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
    processes = Processes(accelerator)
    dtype = compute_dtype(settings.precision, processes.device)
    computed_in = describe(processes.device, dtype, processes.world)
    start = None if factory.is_created(settings.checkpoint) else locate(settings.checkpoint, settings.revision)
    factory.self_check(start or settings.checkpoint, processes.device)
    train, validation = read_splits(settings.validation_captions)
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True, warn_only=device.type == "mps")  # MPS may lack some
    checkpoint, new_tokens = _load(start, params, train)
    if settings.new_tokens and processes.is_first:
        shown = f": {', '.join(new_tokens[:10])}{', ...' if len(new_tokens) > 10 else ''}" if new_tokens else ""
        print(f"{name}: adds {len(new_tokens):,} tokens for words that {settings.checkpoint} lacks{shown}")
    _check_fits(checkpoint, params)
    if device.type == "cpu":
        suit_threads(checkpoint.model.num_parameters())
    if processes.is_first:
        print(f"{name}: computes in {computed_in}, {_threads()}")
    checkpoint.model.to(processes.device)
    # Generated captions are then as long as the training captions, also from the saved checkpoint.
    checkpoint.model.set_caption_length(settings.max_tokens)
    facts = training_facts(params, weights_hash(start) if start else settings.checkpoint, computed_in)
    folder = paths.TRAININGS / facts["training_key"][:32]
    with accelerator.main_process_first():  # it fills the cache for all
        data = open_pictures(checkpoint, train, validation, params, dtype, name if processes.is_first else None)
    store = StateStore(folder)
    trainer = Trainer(checkpoint, data, settings, processes, dtype, store, params.runtime.state_minutes, name)
    forecast = preflight.check(trainer, dtype)
    if processes.is_first:
        rate = f"learning rate {trainer.learning_rate:g}{' (auto)' if settings.learning_rate == 'auto' else ''}"
        print(f"{name}: {forecast}, {rate}")
    return Session(trainer, facts, folder)


def _threads() -> str:
    """Return how many CPU threads compute, and how they wait for each other."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    return f"CPU threads: {torch.get_num_threads()}{f' (OMP_WAIT_POLICY={policy})' if policy else ''}"


def resume(session: Session) -> None:
    """Resume this training if it was interrupted; keep only the newest of other interrupted trainings."""
    trainer, name = session.trainer, session.trainer.name
    resumed = trainer.resume()
    if not session.is_first:
        return
    others = [path for path in paths.TRAININGS.glob("*") if path != session.folder]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    if resumed:
        print(f"{name}: resumes from step {trainer.state.step:,} of {trainer.steps:,}, saved in {session.folder}")
    elif others:
        print(f"{name}: starts from the beginning: {others[0]} has other data, params, code or libraries")
    for older in others[1:]:
        remove(older)


def fit(session: Session, logger: TrainingLogger) -> None:
    """Train to the end. On SIGTERM or Ctrl-C write a state and stop.

    Raises:
        TemporaryError: another process of this training was asked to stop.
    """
    trainer, name = session.trainer, session.trainer.name
    with entrypoint.ending_itself() as asked:
        try:
            trainer.fit(logger, asked)
        except StoppedError:
            step = f"step {trainer.state.step:,} of {trainer.steps:,}"
            print(f"{name}: {step} is saved; `dvc repro` resumes from there")
            if not asked():
                raise TemporaryError("another process of this training was asked to stop; run it again") from None


def write(session: Session, folder: Path, report: Path, metrics: Path | None, history: Path) -> None:
    """Write the best epoch's checkpoint, the report, the metrics that `dvc metrics` shows if any, and the history."""
    trainer, best = session.trainer, session.trainer.best_epoch
    shutil.copytree(StateStore(session.folder).best, folder)
    notice = trainer.model.notice
    notices = {"notice": notice} if notice else {}
    sizes = {
        "epochs": trainer.epochs,
        "parameters": trainer.parameters,
        "trained_parameters": trainer.trained_parameters,
    }
    write_json(
        folder / paths.TRAINING.name,
        {**session.facts, "best_epoch": best.epoch, "parts": trainer.state.parts, **sizes, **notices},
    )
    write_history(history, trainer.state.epochs)
    shown = {
        "best_epoch": best.epoch,
        "train_loss": best.train_loss,
        "validation_loss": best.validation_loss,
        "validation_CIDEr-D": None if math.isnan(best.validation_cider) else best.validation_cider,
    }
    if metrics:
        write_json(metrics, shown)
    write_json(
        report,
        {
            **shown,
            "best_by": "CIDEr-D" if trainer.selects_by_cider or best.is_self_critical else "loss",
            "learning_rate": trainer.learning_rate,
            **sizes,
            "model_sha256": weights_hash(folder),
        },
    )
    costs.write(session.facts["training_key"], trainer.state.seconds)


def summary(session: Session, folder: Path, curve: Path) -> str:
    """Return the stage's last line; `folder` holds the model and `curve` the history."""
    trainer, best = session.trainer, session.trainer.best_epoch
    by_cider = trainer.selects_by_cider or best.is_self_critical
    result = f"CIDEr-D {best.validation_cider:.3f}" if by_cider else f"loss {best.validation_loss:.3f}"
    return (
        f"{folder} holds epoch {best.epoch} of {len(trainer.state.epochs)}, the best on the"
        f" {len(trainer.data.validation):,} validation pictures ({result}); the history is in {curve}"
    )


def training_facts(params: Params, start_hash: str, computed_in: str) -> dict[str, Any]:
    """Return everything that a training's result depends on, and its hash, the training key."""
    facts = {
        "checkpoint": params.finetune.checkpoint,
        "checkpoint_sha256": start_hash,
        "data_sha256": sha256_of(paths.DATASET / "train", paths.DATASET / "validation"),
        "code_sha256": sha256_of(*(_ROOT / file for file in deciding("pipeline.finetune"))),
        "params": params.finetune.model_dump(),
        "computed_in": computed_in,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return {"training_key": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(), **facts}


def _load(start: Path | None, params: Params, train: Sequence[Example]) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint, and the words that were added to its vocabulary."""
    captions = [caption for example in train for caption in example.captions]
    settings = params.finetune
    if start is None:
        return factory.create(settings.checkpoint, settings.scratch, captions, settings.max_tokens), []
    checkpoint = factory.load(start)
    return checkpoint, checkpoint.add_new_tokens(captions, settings.new_tokens)


def _check_fits(checkpoint: Checkpoint, params: Params) -> None:
    if checkpoint.image_size > params.ingest.image_size:
        raise ConfigError(
            f"params.yaml: ingest.image_size: is {params.ingest.image_size}, but {params.finetune.checkpoint} takes"
            f" pictures of {checkpoint.image_size} pixels; set it to {checkpoint.image_size} or more"
        )
    if params.finetune.max_tokens > checkpoint.model.max_tokens:
        raise ConfigError(
            f"params.yaml: finetune.max_tokens: is {params.finetune.max_tokens}, but {params.finetune.checkpoint} has"
            f" places for {checkpoint.model.max_tokens} tokens; set it to {checkpoint.model.max_tokens} or less"
        )
