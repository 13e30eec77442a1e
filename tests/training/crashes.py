"""A training that crashes at a step, for tests of resuming."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from pipeline import finetune
from pipeline.config import params
from pipeline.training.trainer import Trainer

OUTPUTS = [Path("models/finetune"), Path("reports/finetune.json"), Path("reports/finetune.csv")]


class CrashError(Exception):
    pass


def train() -> str:
    """Run the stage in the current workspace."""
    return finetune.run(params.load(), Namespace())


def crash_at(step: int) -> None:
    """Run the stage until it has taken this many steps."""
    original = Trainer._step

    def crash(self: Trainer, *args: Any) -> Any:
        if self.state.step >= step:
            raise CrashError
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_step", crash)
        with pytest.raises(CrashError):
            train()
