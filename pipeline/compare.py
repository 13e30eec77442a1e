"""Compare: an architecture + data/dataset/{train,validation} -> models/compare/NAME, which `evaluate` compares.

It is trained by the code of `finetune` on the same pictures, with the learning rate that suits it. An interrupted
training resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import remove, swapped_in


def run(params: Params, args: argparse.Namespace) -> str:
    """Train one architecture, and return the last line to print."""
    name = args.architecture
    if name not in params.compare.architectures:
        raise ConfigError(f"params.yaml: compare.architectures: does not name {name!r}; add it there, or name another")
    try:
        settings = params.compare.settings(params.finetune, name)
        return _train(params.model_copy(update={"finetune": settings}), name)
    except ConfigError as error:
        # The message names a param of `finetune`, which may suit the model itself.
        reason = str(error).removeprefix("params.yaml: ")
        raise ConfigError(f"params.yaml: compare.architectures: {name}: {reason}") from None


def _train(params: Params, name: str) -> str:
    # For bit-for-bit repeatable matrix products on a GPU; cuBLAS reads it at its start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # These take seconds to import, and `--help` does not need them.
    from pipeline.models import factory
    from pipeline.tracking.live import Live, MlflowLogger
    from pipeline.tracking.run_names import run_name
    from pipeline.training import session

    training = session.set_up(params, factory.locate, "compare")
    session.resume(training)
    folder, report, curve = (
        paths.COMPARED / name,
        paths.COMPARE_REPORTS / f"{name}.json",
        paths.COMPARE_REPORTS / f"{name}.csv",
    )
    with swapped_in(folder, report, curve) as (new_folder, new_report, new_curve):
        shown = params.flat("ingest", "build", "finetune")
        title = run_name(params.ingest.sources, name)
        with Live(params.register_.experiment, training.facts["training_key"], shown, title, "compare") as live:
            session.fit(training, MlflowLogger(live, training.trainer.data.validation))
        session.write(training, new_folder, new_report, None, new_curve)
    remove(training.folder)
    return session.summary(training, folder, curve)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("architecture", help="one of `compare.architectures`")


if __name__ == "__main__":
    entrypoint.main("compare", run, _arguments, lambda args: f"compare-{args.architecture}")
