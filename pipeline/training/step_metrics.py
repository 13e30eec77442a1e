"""Metrics of a training's steps: speed and memory, logged every few steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pipeline.runtime.torch_memory import memory_in_use
from pipeline.training.loader import CaptionedPicture
from pipeline.training.logger import TrainingLogger

LOG_STEPS = 10  # steps between two logged values of step metrics


def scaling_metrics(scaler: torch.amp.GradScaler, skipped: int) -> dict[str, float]:
    """Return the loss scale and the number of skipped steps so far; nothing unless the loss is scaled."""
    return {"loss_scale": scaler.get_scale(), "skipped_steps": skipped} if scaler.is_enabled() else {}


class StepMetrics:
    """Counts pictures and captions, and logs the metrics of every tenth step.

    Args:
        logger: where the metrics go.
        device: whose memory is measured.
    """

    def __init__(self, logger: TrainingLogger, device: torch.device) -> None:
        self._logger, self._device = logger, device
        self._begin()

    def log(self, step: int, captioned: Sequence[CaptionedPicture], metrics: dict[str, float]) -> None:
        """Count a step's pictures; if it is a tenth one, log its metrics and the speed since the last one.

        Args:
            step: its number, from 1.
            captioned: its pictures.
            metrics: what else is logged of it, by name.
        """
        self._pictures += len(captioned)
        self._captions += sum(len(captions) for _, captions in captioned)
        if step % LOG_STEPS:
            return
        seconds = time.monotonic() - self._since
        speed = {
            "pictures_per_second": self._pictures / seconds,
            "captions_per_second": self._captions / seconds,
            "memory_gb": memory_in_use(self._device) / 1e9,
        }
        self._logger.metrics({f"step/{name}": value for name, value in (metrics | speed).items()}, step)
        self._begin()

    def _begin(self) -> None:
        self._since, self._pictures, self._captions = time.monotonic(), 0, 0
