"""Pretrain `git-demo`: a small GIT that captions synthetic scenes in plain words.

    python -m pipeline.synthetic.pretrain models/git-demo

Every step uses new scenes, so the model cannot memorise them. Training follows a curriculum (`lesson`), because a model
this small that sees everything from the start spends a long time predicting words from the text alone. The result is a
plain Hugging Face checkpoint with a model card that contains the figures.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline.config.sections.finetune import Scratch
from pipeline.models.captioner import Captioner
from pipeline.models.device import best_device
from pipeline.models.git.checkpoint import Git, GitCheckpoint
from pipeline.models.inputs import Batch, collate, resize_and_crop
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json
from pipeline.synthetic.evaluate_attributes import SCENES, Accuracy, evaluate_attributes
from pipeline.synthetic.scenes import COLOURS, PLACES, Scene, draw, random_scene, unseen_pairs
from pipeline.synthetic.things import THINGS
from pipeline.synthetic.words import instagram, kinds_only, plain
from pipeline.training.loader import swap_words
from pipeline.training.optimization import CaptionLoss, adamw

SEED = 1
STEPS = 22_000
BATCH = 16  # scenes per step
LEARNING_RATE = 6e-4
WARMUP = 200  # steps
DECAY = 0.4  # fraction of the steps, at the end, over which the learning rate decays to 0 (half a cosine)
WORD_SWAPS = 0.4  # fraction of the input words that are replaced by words of other captions
WEIGHT_DECAY = 0.05
GRADIENT_CLIP = 1.0
MAX_TOKENS = 48
SIZES = Scratch(
    image_size=96,
    patch_size=12,
    hidden_size=128,
    heads=4,
    image_layers=3,
    text_layers=2,
    vocabulary=2000,
    dropout=0.0,  # no scene is repeated, so there is nothing to overfit to
)
DROPOUT = 0.1  # of the saved configuration: fine-tuning repeats its pictures
_FIGURES = "training.json"  # in the checkpoint's folder
_TOKENIZER_SCENES = 3000  # scenes whose captions train the tokenizer
# Fine-tuning may need any letter, and the usual emoji of feeds (faces; pictographs; a few from other blocks).
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_EMOJI = [*map(chr, range(0x1F600, 0x1F650)), *map(chr, range(0x1F300, 0x1F600)), *"☀☁☕⚡⚽⛄⛅⛵✈✌✨❄❤⭐🚀🤍🤎🥰🧡"]


@dataclass(frozen=True)
class Lesson:
    """A step of the curriculum: the scenes and captions at one point of the training.

    Attributes:
        spread: how much things vary in size and position, see `random_scene`.
        two: fraction of the scenes with two things.
        caption: returns the caption of a scene.
    """

    spread: float
    two: float
    caption: Callable[[Scene], str]


def lesson(progress: float) -> Lesson:
    """Return the lesson at a fraction `progress` of all steps.

    The captions first name only kinds of things, which are big and centred, then vary more and more. Colours and sizes
    are added later, so that the model recognises a kind by its shape before the words for its usual colours could
    predict it; otherwise it fails on unseen combinations. Scenes with two things come last.
    """
    if progress < 0.4:
        return Lesson(spread=min(1.0, max(0.0, (progress - 0.06) / 0.3)), two=0.0, caption=kinds_only)
    return Lesson(spread=1.0, two=0.0 if progress < 0.55 else 0.5, caption=plain)


class _Steps(Dataset[Batch]):
    """The batches of all steps; the seed and the step's number determine the scenes of a step."""

    def __init__(self, checkpoint: GitCheckpoint, steps: int, seed: int) -> None:
        self._checkpoint = checkpoint
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        rng, grain = random.Random(f"{self._seed} {step}"), np.random.default_rng((self._seed, step))
        current = lesson(step / self._steps)
        scenes = [random_scene(rng, current.two, avoid=unseen_pairs(), spread=current.spread) for _ in range(BATCH)]
        pictures = resize_and_crop(self._checkpoint.image_processor, [draw(scene, grain) for scene in scenes])
        tokens = [[self._checkpoint.tokenizer(current.caption(scene))["input_ids"]] for scene in scenes]
        return swap_words(collate(self._checkpoint, pictures, tokens), WORD_SWAPS, (self._seed, step, 1))


def pretrain(seed: int = SEED, steps: int = STEPS) -> GitCheckpoint:
    """Train a new GIT on `steps * BATCH` scenes."""
    # Makes matrix products on a GPU deterministic; cuBLAS reads it at start-up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    checkpoint = Git().scratch(SIZES, _texts(), MAX_TOKENS)
    config = checkpoint.model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = (
        DROPOUT  # takes effect when the checkpoint is loaded
    )
    checkpoint.model.set_caption_length(MAX_TOKENS)
    device = best_device()
    model = checkpoint.model.to(device).train()
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    compute_loss = CaptionLoss(model)
    # A worker process draws the next scenes.
    loader = DataLoader(_Steps(checkpoint, steps, seed), batch_size=None, num_workers=1, prefetch_factor=16)
    bar = tqdm(loader, desc="pretrain", unit=" steps", disable=None)
    mean = 0.0
    for step, batch in enumerate(bar):
        loss, tokens = compute_loss(batch.to(device))
        optimizer.zero_grad()
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        mean += ((loss / tokens).item() - mean) / min(step + 1, 200)
        if step % 100 == 99:
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if (step + 1) % -(-steps // 10) == 0:
            bar.write(f"pretrain: step {step + 1:6,}/{steps:,}  train loss {mean:.4f} nats per token")
    return checkpoint


def _texts() -> list[str]:
    """Return the text that trains the tokenizer; it includes the words of the sample, which the model never sees."""
    rng = random.Random(0)
    scenes: list[Scene] = [random_scene(rng, avoid=unseen_pairs()) for _ in range(_TOKENIZER_SCENES)]
    captions = [caption for scene in scenes for caption in (plain(scene), *instagram(scene, rng))]
    letters = [word for letter in _LETTERS for word in (letter, f"a{letter}")]
    return [*captions, *letters, *_EMOJI]


def _rate(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of its maximum: linear warm-up, constant, cosine decay."""
    decay = max(0.0, (step - (1 - DECAY) * steps) / (DECAY * steps))
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * decay))


def card(
    accuracy: Accuracy, parameters: int, seed: int, steps: int, minutes: float, other_seed: Accuracy | None
) -> str:
    """Return the model card in Hugging Face's format; `other_seed` is the accuracy of a model with another seed."""
    columns = {"this model": accuracy} | ({"another seed": other_seed} if other_seed else {})
    lines = [
        f"| {accuracy['seen_combinations']['scenes']:.0f} scenes each | combinations | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for combinations in accuracy:
        for key, measure in _MEASURES.items():
            values = " | ".join(f"{100 * column[combinations][key]:.1f} %" for column in columns.values())
            lines.append(f"| {measure} | {combinations.split('_')[0]} | {values} |")
    return _CARD.format(
        parameters=f"{parameters / 1e6:.2f}",
        colour_count=len(COLOURS),
        colours=", ".join(COLOURS),
        kind_count=len(THINGS),
        kinds=", ".join(THINGS),
        places=", ".join(place.where for place in PLACES.values()),
        unseen=", ".join(f"{colour} {kind}" for colour, kind in sorted(unseen_pairs())),
        table="\n".join(lines),
        seed=seed,
        steps=steps,
        batch=BATCH,
        word_swaps=f"{100 * WORD_SWAPS:.0f}",
        scenes=f"{steps * BATCH:,}",
        minutes=f"{minutes:.0f}",
        dropout=DROPOUT,
        device="CPU" if best_device().type == "cpu" else "GPU",
        threads=torch.get_num_threads(),
    )


_MEASURES = {
    "plain": "caption exactly right",
    "named": "every colour and object named",
    "named_of_one": "the same, scenes with one object",
    "named_of_two": "the same, scenes with two objects",
}
_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: image-to-text
---

# git-demo

A small GIT ({parameters} million parameters) that captions synthetic scenes in plain words: "a small red boat left of a
big blue lighthouse on the beach". It is a starting point for fine-tuning that runs on a laptop. Stock `transformers`
loads it with `AutoModelForCausalLM` and `AutoProcessor`.

## What it can and cannot do

It knows {kind_count} objects ({kinds}) in {colour_count} colours ({colours}) and two sizes. A scene has one or two of
them {places}; of two objects the caption names the left one first.

It has only seen these drawings: its captions of photographs are meaningless. Every object appears only in its own
places, so the model does not know a teapot on the beach. The tokenizer is lower-case. It can spell every English word,
and it has tokens for many emoji and for the words of the sample's captions, but the model has never seen those used.

## Evaluation

The scenes are new. In *unseen* combinations every object has a colour in which it never appeared in training:
{unseen}.
Captions are generated by greedy search; "named" means that colour and object appear next to each other ("red boat").

{table}

## Training

    python -m pipeline.synthetic.pretrain models/git-demo --seed {seed} --steps {steps}

{scenes} scenes, each shown once, {batch} per step, in a curriculum: first only the kinds of objects, big and centred;
then at varying positions and sizes; then with sizes and colours; then two objects in half of the scenes. {word_swaps} %
of the input words are replaced by words of other captions, so that the model has to use the picture. Training took
{minutes} minutes on a {device} (threads: {threads}), without dropout; the configuration sets dropout {dropout} for
fine-tuning. The same seed, machine and number of threads give the same weights.
"""


def main() -> None:
    """Command line: train, measure, and write the checkpoint with its card."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthetic.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write the checkpoint to")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="random seed of weights and scenes (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes to evaluate on (default: %(default)s)")
    parser.add_argument("--compare", type=Path, help="checkpoint of another seed, whose figures the card shows too")
    args = parser.parse_args()
    other_seed = read_json(args.compare / _FIGURES) if args.compare else None
    start = time.monotonic()
    checkpoint = pretrain(args.seed, args.steps)
    minutes = (time.monotonic() - start) / 60
    accuracy = evaluate_attributes(Captioner(checkpoint), args.scenes)
    with swapped_in(args.folder) as (folder,):
        checkpoint.save(folder)
        write_json(folder / _FIGURES, {"seed": args.seed, "steps": args.steps, "minutes": round(minutes), **accuracy})
        text = card(accuracy, checkpoint.model.num_parameters(), args.seed, args.steps, minutes, other_seed)
        (folder / "README.md").write_text(text, encoding="utf-8")
    named = accuracy["unseen_combinations"]["named"]
    print(
        f"pretrain: {args.folder} names every colour and object in {100 * named:.1f} % of the scenes with unseen"
        f" combinations; all figures: {args.folder / 'README.md'}; next: `dvc add` it, as `make pretrain` does"
    )


if __name__ == "__main__":
    main()
