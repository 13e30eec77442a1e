"""Fine-tune: a GIT checkpoint + data/dataset/{train,validation} -> models/finetune, a plain Hugging Face checkpoint.

Every epoch sees every training picture once, with some or all of its captions; the epoch that does best on the
validation pictures is kept. A training that was cut off goes on where it was (`pipeline/training/trainer.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.params import Params
from pipeline.config.sections.finetune import Finetune
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.models.weights import weights_hash
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import remove, sha256_of, swapped_in, write_json
from pipeline.runtime.import_closure import deciding
from pipeline.training.distributed import is_first, is_one_of_several
from pipeline.training.history import write_curve

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from pipeline.models.git.checkpoint import Checkpoint
    from pipeline.tracking.runs import Live
    from pipeline.training.trainer import Training, Watch

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "pillow", "numpy")


def run(params: Params, args: argparse.Namespace) -> str:
    """Fine-tune, and return the last line to print."""
    # For bit-for-bit repeatable matrix products on a GPU; cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    from pipeline.models.git.parity import check_loss
    from pipeline.models.precision import chosen, in_words
    from pipeline.tracking.runs import Live
    from pipeline.training import distributed
    from pipeline.training.memory import keep_freed_memory
    from pipeline.training.state import States
    from pipeline.training.trainer import Training

    keep_freed_memory()
    settings, launch = params.finetune, params.runtime.launch
    gpu = torch.cuda.is_available()
    if launch.together > 1 and not distributed.is_one_of_several():
        raise SystemExit(distributed.run_several("pipeline.finetune", launch, args.machine, gpu))
    # One process fills the cache of features for all, and another machine may be started hours later.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=not gpu, kwargs_handlers=[patience])
    device, first = accelerator.device, accelerator.is_main_process
    dtype = chosen(settings.precision, device)
    computed_in = in_words(device, dtype, accelerator.num_processes)
    if first:
        print(f"finetune: computes in {computed_in}")
    check_loss()
    train, validation = read_examples(paths.DATASET / "train"), read_examples(paths.DATASET / "validation")
    captioned = fair_share(validation, settings.validation_captions)  # the first ones are captioned each epoch
    first_ones = {example.sha256 for example in captioned}
    validation = [*captioned, *(example for example in validation if example.sha256 not in first_ones)]
    if not validation:
        raise ConfigError("params.yaml: build.validation: is 0, but the best epoch is chosen by it; set it to 0.1")
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    start, start_hash = _start(settings, train)
    _check_fits(start, params)
    # Whoever loads the checkpoint then generates captions as long as those that it learned.
    start.model.generation_config.max_length = settings.max_tokens
    made_by = training_facts(params, start_hash, computed_in)
    kept = paths.TRAININGS / made_by["training_key"][:32]
    states = States(kept)
    with accelerator.main_process_first():  # it fills the cache for all
        pictures, held_out = _pictures(start, train, validation, params, dtype)
    training = Training(
        start, pictures, held_out, train, validation, settings, accelerator, dtype, states, params.runtime.state_minutes
    )
    outlook = training.check()
    if first:
        print(f"finetune: {outlook}")
    _go_on(training, kept, first)
    if not first:
        _fit(training, _Nobody())
        return "its share is done"

    with swapped_in(paths.MODEL, paths.FINETUNE_REPORT, paths.FINETUNE_CURVE) as (folder, report, curve):
        with Live(
            params.register_.experiment, made_by["training_key"], params.flat("ingest", "build", "finetune")
        ) as live:
            _fit(training, _Watch(live, validation))
        shutil.copytree(states.best, folder)
        best = training.best_epoch
        write_json(folder / paths.TRAINING.name, {**made_by, "best_epoch": best.epoch})
        write_curve(curve, training.progress.epochs)
        write_json(
            report,
            {
                "best_epoch": best.epoch,
                "best_by": "CIDEr-D" if training.by_cider else "loss",
                "train_loss": best.train_loss,
                "validation_loss": best.validation_loss,
                "validation_CIDEr-D": None if math.isnan(best.validation_cider) else best.validation_cider,
                "parameters": training.parameters,
                "trained_parameters": training.trained_parameters,
                "model_sha256": weights_hash(folder),
            },
        )
    remove(kept)
    judged = f"CIDEr-D {best.validation_cider:.3f}" if training.by_cider else f"loss {best.validation_loss:.3f}"
    return (
        f"{paths.MODEL} holds epoch {best.epoch} of {len(training.progress.epochs)}, the best on the"
        f" {len(validation):,} validation pictures ({judged}); the curve is in {paths.FINETUNE_CURVE}"
    )


def _go_on(training: Training, kept: Path, first: bool) -> None:
    """Go on from where this very training was cut off, or say why not; of other ones the newest is left alone."""
    resumed = training.resume()
    if not first:
        return
    others = [path for path in paths.TRAININGS.glob("*") if path != kept]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    if resumed:
        print(f"finetune: goes on from step {training.progress.step:,} of {training.steps:,}, kept in {kept}")
    elif others:
        print(f"finetune: starts anew, for {others[0]} was begun with other data, params, code or libraries")
    for older in others[1:]:
        remove(older)


def _fit(training: Training, watch: Watch) -> None:
    from pipeline.training.trainer import StoppedError

    with entrypoint.ending_itself() as asked:
        try:
            training.fit(watch, asked)
        except StoppedError:
            step = f"step {training.progress.step:,} of {training.steps:,}"
            print(f"finetune: {step} is kept; `dvc repro` goes on from there")
            if not asked():
                raise TemporaryError("another process of this training was asked to end; run it again") from None


class _Nobody:
    """Shows nothing: one process does."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        pass

    def samples(self, captions: Sequence[Sequence[str]]) -> None:
        pass


class _Watch:
    """Shows a training in MLflow."""

    def __init__(self, live: Live, validation: Sequence[Example]) -> None:
        self._live = live
        self._validation = validation

    def metrics(self, values: dict[str, float], step: int) -> None:
        self._live.metrics(values, step)

    def samples(self, captions: Sequence[Sequence[str]]) -> None:
        from pipeline.tracking import samples_page

        if captions[-1]:
            reader = PictureReader(paths.DATASET / "validation")
            self._live.page("samples.html", samples_page.render(self._validation, reader, captions))


def _start(settings: Finetune, train: Sequence[Example]) -> tuple[Checkpoint, str]:
    """The checkpoint that training starts from, and a hash of what decides it."""
    from pipeline.models.git import checkpoint as checkpoints

    if settings.checkpoint == checkpoints.SCRATCH:
        captions = [caption for example in train for caption in example.captions]
        return checkpoints.scratch(settings.scratch, captions, settings.max_tokens), checkpoints.SCRATCH
    folder = checkpoints.locate(settings.checkpoint, settings.revision)
    return checkpoints.load(folder), weights_hash(folder)


def _check_fits(checkpoint: Checkpoint, params: Params) -> None:
    if checkpoint.image_size > params.ingest.image_size:
        raise ConfigError(
            f"params.yaml: ingest.image_size: is {params.ingest.image_size}, but {params.finetune.checkpoint} takes"
            f" pictures of {checkpoint.image_size} pixels; set it to {checkpoint.image_size} or more"
        )
    most = checkpoint.model.config.max_position_embeddings
    if params.finetune.max_tokens > most:
        raise ConfigError(
            f"params.yaml: finetune.max_tokens: is {params.finetune.max_tokens}, but {params.finetune.checkpoint} has"
            f" places for {most} tokens; set it to {most} or less"
        )


def training_facts(params: Params, start_hash: str, computed_in: str) -> dict[str, Any]:
    """What decides a training's result, and the key made of it."""
    facts = {
        "checkpoint": params.finetune.checkpoint,
        "checkpoint_sha256": start_hash,
        "data_sha256": sha256_of(paths.DATASET / "train", paths.DATASET / "validation"),
        "code_sha256": sha256_of(*(Path(__file__).parent.parent / file for file in deciding("pipeline.finetune"))),
        "params": params.finetune.model_dump(),
        "computed_in": computed_in,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return {"training_key": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(), **facts}


def _pictures(
    checkpoint: Checkpoint,
    train: Sequence[Example],
    validation: Sequence[Example],
    params: Params,
    dtype: torch.dtype,
) -> tuple[Callable[[int], Dataset[torch.Tensor]], Dataset[torch.Tensor]]:
    """The training pictures of each epoch, and the validation pictures.

    With a frozen image encoder, what it makes of them, where they are the same in each epoch and that can be kept.
    """
    from pipeline.training.augmentation import Augmented
    from pipeline.training.feature_cache import Features, NoRoomError
    from pipeline.training.loader import Pictures

    settings = params.finetune

    def pictures(**memory: int) -> tuple[Pictures, Pictures]:
        return (
            Pictures(train, PictureReader(paths.DATASET / "train"), checkpoint, **memory),
            Pictures(validation, PictureReader(paths.DATASET / "validation"), checkpoint, **memory),
        )

    of_train, of_validation = pictures()
    if settings.augmentation.is_on:
        return lambda epoch: Augmented(of_train, train, settings.augmentation, settings.seed, epoch), of_validation
    if settings.freeze == "none":
        return lambda epoch: of_train, of_validation
    limit = int(params.runtime.feature_cache_gb * 1e9)
    try:
        features, held_out = Features(checkpoint, pictures(memory=0), paths.FEATURES, dtype, limit).splits()
        return lambda epoch: features, held_out
    except NoRoomError as error:
        print(f"finetune: runtime.feature_cache_gb: features take {error}; pictures are encoded each time")
        return lambda epoch: of_train, of_validation


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine",
        type=int,
        default=0,
        metavar="N",
        help="this machine's rank (0-based; default: %(default)s)",
    )


def _lock(args: argparse.Namespace) -> str | None:
    """One training a workspace; but its own processes, and the other machines of it, come in."""
    return None if is_one_of_several() or args.machine else "finetune"


if __name__ == "__main__":
    entrypoint.main("finetune", run, _arguments, _lock, prints=is_first())
