"""Fine-tune: a checkpoint + data/dataset/{train,validation} -> models/finetune, a plain Hugging Face checkpoint.

Every epoch sees every training picture once, with some or all of its captions. The best epoch on the validation
pictures is kept. An interrupted training resumes where it stopped (see `pipeline/training/trainer.py`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial

from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import remove, swapped_in
from pipeline.runtime.launch import is_first, is_one_of_several, run_several


def run(params: Params, args: argparse.Namespace) -> str:
    """Fine-tune, and return the last line to print."""
    if params.runtime.launch.together > 1 and not is_one_of_several():
        raise SystemExit(run_several("pipeline.finetune", params.runtime.launch, args.machine))
    # For bit-for-bit repeatable matrix products on a GPU; cuBLAS reads it at its start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # These take seconds to import, and `--help` does not need them.
    from pipeline.tracking import checkpoints
    from pipeline.tracking.live import Live, MlflowLogger
    from pipeline.tracking.run_names import run_name
    from pipeline.training import session

    training = session.set_up(params, partial(checkpoints.locate, cache_gb=params.runtime.model_cache_gb))
    session.resume(training)
    if not training.is_first:
        session.fit(training, _NoLogger())
        return "this process is done"

    outputs = (paths.MODEL, paths.FINETUNE_REPORT, paths.FINETUNE_METRICS, paths.FINETUNE_CURVE)
    with swapped_in(*outputs) as (folder, report, metrics, history):
        shown = params.flat("ingest", "build", "finetune")
        name = run_name(params.ingest.sources, params.finetune.checkpoint)
        with Live(params.register_.experiment, training.facts["training_key"], shown, name) as live:
            session.fit(training, MlflowLogger(live, training.trainer.data.validation))
        session.write(training, folder, report, metrics, history)
    remove(training.folder)
    return session.summary(training, paths.MODEL, paths.FINETUNE_CURVE)


class _NoLogger:
    """Logs nothing, for processes other than the first."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        pass

    def samples(self, captions: Sequence[Sequence[str]], best_epoch: int) -> None:
        pass


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine",
        type=int,
        default=0,
        metavar="N",
        help="this machine's rank (0-based; default: %(default)s)",
    )


def _lock(args: argparse.Namespace) -> str | None:
    """Return the lock: one training per workspace; its worker processes and its other machines need none."""
    return None if is_one_of_several() or args.machine else "finetune"


if __name__ == "__main__":
    entrypoint.main("finetune", run, _arguments, _lock, prints=is_first())
