"""Fine-tune: a GIT checkpoint + data/dataset/{train,validation} -> models/finetune, a plain Hugging Face checkpoint.

Every epoch sees every training picture once, with some or all of its captions; the epoch with the lowest loss
on the validation captions is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import paths, stage
from pipeline.closure import closure
from pipeline.data.records import Example, PictureReader, read_examples
from pipeline.errors import ConfigError
from pipeline.files import sha256_of, swapped_in, write_json
from pipeline.model.curve import Epoch, write_curve
from pipeline.model.weights import weights_hash
from pipeline.params import Finetune, Params

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from pipeline.model.batches import Batch
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.model.git import GitForCausalLM
    from pipeline.tracking import Live

LOG_STEPS = 10  # the step curve has a point for each so many steps
HELD_OUT_CAPTIONS = 8  # of each validation picture, the first; hundreds in one row would cost too much memory
_LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")


def run(params: Params, args: argparse.Namespace) -> str:
    """Fine-tune, and return the last line to print."""
    # For bit-for-bit repeatable matrix products on a GPU; cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from pipeline.model.allocator import keep_freed_memory
    from pipeline.model.precision import chosen, in_words
    from pipeline.model.selfcheck import check_loss
    from pipeline.tracking import Live

    keep_freed_memory()
    settings = params.finetune
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = chosen(settings.precision, device)
    computed_in = in_words(device, dtype)
    print(f"finetune: computes in {computed_in}")
    check_loss()
    train, validation = read_examples(paths.DATASET / "train"), read_examples(paths.DATASET / "validation")
    if not validation:
        raise ConfigError("params.yaml: build.validation: is 0, but the best epoch is chosen by it; set it to 0.1")
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True)
    start, start_hash = _start(settings, train)
    _check_fits(start, params)
    # Whoever loads the checkpoint then generates captions as long as those that it learned.
    start.model.generation_config.max_length = settings.max_tokens
    made_by = training_facts(params, start_hash, computed_in)

    with swapped_in(paths.MODEL, paths.FINETUNE_REPORT, paths.FINETUNE_CURVE) as (folder, report, curve):
        with Live(
            params.register_.experiment, made_by["training_key"], params.flat("ingest", "build", "finetune")
        ) as live:
            epochs = []
            for epoch in fit(start, train, validation, settings, live, device, dtype):
                _check_finite(epoch, settings)
                epochs.append(epoch)
                if epoch.validation_loss <= min(e.validation_loss for e in epochs):
                    start.save(folder)
        best = min(epochs, key=lambda e: e.validation_loss)
        write_json(folder / paths.TRAINING.name, {**made_by, "best_epoch": best.epoch})
        write_curve(curve, epochs)
        write_json(
            report,
            {
                "best_epoch": best.epoch,
                "train_loss": best.train_loss,
                "validation_loss": best.validation_loss,
                "parameters": start.model.num_parameters(),
                "model_sha256": weights_hash(folder),
            },
        )
    return (
        f"{paths.MODEL} holds epoch {best.epoch} of {settings.epochs}, the best on the {len(validation):,} validation"
        f" pictures (loss {best.validation_loss:.3f}); the curve is in {paths.FINETUNE_CURVE}"
    )


def _start(settings: Finetune, train: Sequence[Example]) -> tuple[Checkpoint, str]:
    """The checkpoint that training starts from, and a hash of what decides it."""
    from pipeline.model import checkpoint as checkpoints

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


def _check_finite(epoch: Epoch, settings: Finetune) -> None:
    if not math.isfinite(epoch.train_loss + epoch.validation_loss):
        raise ConfigError(
            f"params.yaml: finetune.learning_rate: with {settings.learning_rate:g} the training diverged in epoch"
            f" {epoch.epoch} (train loss {epoch.train_loss}, validation loss {epoch.validation_loss}); lower it. The"
            " last good model is in place"
        )


def training_facts(params: Params, start_hash: str, computed_in: str) -> dict[str, Any]:
    """What decides a training's result, and the key made of it (not of how much room features may take)."""
    facts = {
        "checkpoint": params.finetune.checkpoint,
        "checkpoint_sha256": start_hash,
        "data_sha256": sha256_of(paths.DATASET / "train", paths.DATASET / "validation"),
        "code_sha256": sha256_of(*(Path(__file__).parent.parent / file for file in closure("pipeline.finetune"))),
        "params": params.finetune.model_dump(),
        "computed_in": computed_in,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    deciding = {**facts, "params": params.finetune.model_dump(exclude={"feature_cache_gb"})}
    return {"training_key": hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(), **facts}


def fit(
    checkpoint: Checkpoint,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: Finetune,
    live: Live,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Epoch]:
    """Train `checkpoint` in place; gives each epoch's losses when it has ended."""
    import torch
    from tqdm import tqdm
    from transformers import get_cosine_schedule_with_warmup

    from pipeline.model.batches import batches, epoch_captions, tokenize
    from pipeline.model.optimization import adamw, train_step

    model = checkpoint.model.to(device)
    if settings.freeze == "image_encoder":
        model.git.image_encoder.requires_grad_(False)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    train_tokens = tokenize(checkpoint, train, settings.max_tokens)
    train_pictures, held_out_pictures = _pictures(checkpoint, train, validation, settings, dtype)
    held_out = batches(
        checkpoint,
        held_out_pictures,
        [
            (i, of_it[:HELD_OUT_CAPTIONS])
            for i, of_it in enumerate(tokenize(checkpoint, validation, settings.max_tokens))
        ],
        settings.batch_size,
    )
    optimizer = adamw(model, settings.learning_rate, settings.weight_decay)
    each = None if settings.captions_per_picture == "all" else settings.captions_per_picture
    steps = settings.epochs * -(-len(train) // settings.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    bar = tqdm(total=steps, desc="finetune", unit=" steps", disable=None)
    step = 0
    for epoch in range(1, settings.epochs + 1):
        model.train()
        if settings.freeze == "image_encoder":
            model.git.image_encoder.eval()  # no dropout: what it says is the same each time
        loss_sum, tokens_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        captioned = epoch_captions(train_tokens, settings.seed, epoch, each)
        for batch in batches(checkpoint, train_pictures, captioned, settings.batch_size):
            loss, tokens = train_step(
                model,
                batch.to(device),
                optimizer,
                schedule,
                gradient_clip=settings.gradient_clip,
                dtype=dtype,
                label_smoothing=settings.label_smoothing,
            )
            loss_sum += loss
            tokens_sum += tokens
            step += 1
            bar.update()
            if step % LOG_STEPS == 0:
                live.metrics({"step/train_loss": (loss / tokens).item()}, step)
        ended = Epoch(
            epoch=epoch,
            train_loss=(loss_sum / tokens_sum).item(),
            validation_loss=_mean_loss(model, held_out, device, dtype),
            learning_rate=schedule.get_last_lr()[0],
        )
        live.metrics(ended.metrics(), epoch)
        bar.write(
            f"finetune: epoch {epoch:3}/{settings.epochs}  train loss {ended.train_loss:.4f}"
            f"  validation loss {ended.validation_loss:.4f}"
        )
        yield ended
    bar.close()


def _pictures(
    checkpoint: Checkpoint,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: Finetune,
    dtype: torch.dtype,
) -> Sequence[Dataset[torch.Tensor]]:
    """The pictures of both splits; with a frozen image encoder what it makes of them, where that can be kept."""
    from pipeline.model.batches import Pictures
    from pipeline.model.features import Features, NoRoomError

    def pictures(**memory: int) -> list[Pictures]:
        return [
            Pictures(examples, PictureReader(paths.DATASET / split), checkpoint, **memory)
            for split, examples in (("train", train), ("validation", validation))
        ]

    if settings.freeze == "none":
        return pictures()
    limit = int(settings.feature_cache_gb * 1e9)
    try:
        return Features(checkpoint, pictures(memory=0), paths.FEATURES, dtype, limit).splits()
    except NoRoomError as error:
        print(f"finetune: finetune.feature_cache_gb: features take {error}; pictures are encoded each time")
        return pictures()


def _mean_loss(model: GitForCausalLM, held_out: Iterable[Batch], device: torch.device, dtype: torch.dtype) -> float:
    """The mean loss a token over the captions of the validation split."""
    import torch

    from pipeline.model.optimization import summed_loss

    model.eval()
    loss_sum = tokens_sum = 0.0
    with torch.inference_mode():
        for batch in held_out:
            loss, tokens = summed_loss(model, batch.to(device), dtype)
            loss_sum += loss.item()
            tokens_sum += tokens.item()
    return loss_sum / tokens_sum


if __name__ == "__main__":
    stage.main("finetune", run, lock=lambda args: "finetune")
