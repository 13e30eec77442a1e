"""A training's state, and how it is saved and restored: position, weights, optimizer, schedule and random states."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from pipeline.runtime.state_store import StateStore
from pipeline.training.history import EpochMetrics
from pipeline.training.processes import Processes
from pipeline.training.random_states import random_states, set_random_states

Schedule = torch.optim.lr_scheduler.LRScheduler


@dataclass
class TrainingState:
    """The position of a training, and its results so far; saved with the weights, optimizer and random states.

    Attributes:
        step: optimizer steps taken.
        epochs: metrics of the completed epochs.
        loss_sum: summed loss of the current epoch, nats.
        tokens: tokens in that sum.
        samples: for each completed epoch, generated captions of the first validation pictures.
        seconds: duration of the training so far, validation included.
        cross_entropy_epochs: epochs before self-critical training; 0 until that begins.
        parts: parts that a step is computed in, one after the other.
        skipped_steps: steps that were skipped because their gradient exceeded the range of float16.
        reward_sum, samples_drawn, advantage_sum: of the current self-critical epoch, see `Sampler.weighted`.
    """

    step: int = 0
    epochs: list[EpochMetrics] = field(default_factory=list)
    loss_sum: float = 0.0
    tokens: int = 0
    samples: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0
    cross_entropy_epochs: int = 0
    parts: int = 1
    skipped_steps: int = 0
    reward_sum: float = 0.0
    samples_drawn: float = 0.0
    advantage_sum: float = 0.0

    def begin_epoch(self) -> None:
        """Set the sums of an epoch to 0."""
        self.loss_sum, self.tokens = 0.0, 0
        self.reward_sum = self.samples_drawn = self.advantage_sum = 0.0


def save_state(
    store: StateStore,
    state: TrainingState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    scaler: torch.amp.GradScaler,
    processes: Processes,
) -> None:
    """Write a state; all processes call it together, and the first writes.

    Raises:
        OSError: not enough disk space; nothing was written.
    """
    states = processes.gather([random_states(processes.device)])

    def fill(folder: Path) -> None:
        save_model(model, str(folder / "model.safetensors"))
        save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
        for rank, tensors in enumerate(states):
            save_file(tensors, folder / f"random-{rank}.safetensors")
        content = {"progress": asdict(state), "schedule": schedule.state_dict(), "scaler": scaler.state_dict()}
        (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")

    if processes.is_first:
        parameters = list(model.parameters())  # AdamW keeps two more numbers for each trainable one
        size = sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in parameters)
        store.write(state.step, fill, size)
    processes.wait()


def is_self_critical(folder: Path) -> bool:
    """Return whether self-critical training had begun when a state was written; it has an optimizer of its own."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return bool(content["progress"]["cross_entropy_epochs"])


def load_state(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    scaler: torch.amp.GradScaler,
    processes: Processes,
) -> TrainingState:
    """Restore model, optimizer, schedule, loss scale and random states in place, and return the position."""
    load_model(model, str(folder / "model.safetensors"))  # into the model, on whatever device it is
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        tensors.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": tensors, "param_groups": groups})
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    schedule.load_state_dict(content["schedule"])
    if scaler.is_enabled():
        scaler.load_state_dict(content["scaler"])
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    set_random_states(load_file(folder / f"random-{processes.rank}.safetensors"), processes.device)
    progress = content["progress"]
    return TrainingState(**{**progress, "epochs": [EpochMetrics(**epoch) for epoch in progress["epochs"]]})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value.contiguous() for i, tensors in states.items() for key, value in tensors.items()}
