"""Makes `git-demo`: a small GIT that has learned to tell drawn scenes in plain words.

    python -m pipeline.synthetic.pretrain models/git-demo

No scene is drawn twice: each step has new ones, so there is nothing to learn by heart. The lessons begin simple and
widen (`lesson`): shown everything from the start, a model this small stays for long on what the words alone tell.
The result is a plain Hugging Face checkpoint with a model card, which holds the figures.
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
from pipeline.models.git.checkpoint import Git, GitCheckpoint
from pipeline.models.inputs import Batch, collate, resize_and_crop
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json
from pipeline.synthetic.evaluate_sight import SCENES, Figures, sight
from pipeline.synthetic.scenes import COLOURS, PLACES, Scene, draw, random_scene, unseen_pairs
from pipeline.synthetic.things import THINGS
from pipeline.synthetic.words import bare, instagram, plain
from pipeline.training.loader import swap_words
from pipeline.training.optimization import CaptionLoss, adamw

SEED = 1
STEPS = 22_000
BATCH = 16  # scenes a step
LEARNING_RATE = 6e-4
WARMUP = 200  # steps
FALL = 0.4  # the part of the steps, the last, over which the learning rate falls to 0 on half a cosine
MISREAD = 0.4  # the part of the words
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
    dropout=0.0,  # no scene comes twice, so nothing is learned by heart
)
DROPOUT = 0.1  # that the checkpoint asks for where it is fine-tuned, on pictures that do come again
_NOTE = "training.json"  # of the checkpoint's folder
_TEXTS = 3000  # scenes whose captions the tokenizer is made from
# A fine-tune may need any letter, and the emoji that feeds are full of. (Faces; pictographs; a few of other blocks.)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_EMOJI = [*map(chr, range(0x1F600, 0x1F650)), *map(chr, range(0x1F300, 0x1F600)), *"☀☁☕⚡⚽⛄⛅⛵✈✌✨❄❤⭐🚀🤍🤎🥰🧡"]


@dataclass(frozen=True)
class Lesson:
    """What is shown and told at a point of the training.

    Attributes:
        spread: how far things differ in size and place, see `random_scene`.
        two: the part of the scenes that have two things.
        tell: the caption of a scene.
    """

    spread: float
    two: float
    tell: Callable[[Scene], str]


def lesson(done: float) -> Lesson:
    """The lesson when the part `done` of all steps is done.

    First the kinds of things alone, in the middle and big, then ever more freely placed and sized. Only then
    colours and sizes are told, so that a kind is known by its shape before the words for its usual colours
    could give it away: otherwise a combination that was never seen is not believed. Two things come last.
    """
    if done < 0.4:
        return Lesson(spread=min(1.0, max(0.0, (done - 0.06) / 0.3)), two=0.0, tell=bare)
    return Lesson(spread=1.0, two=0.0 if done < 0.55 else 0.5, tell=plain)


class _Steps(Dataset[Batch]):
    """The batches of all steps: step k has the scenes that the seed and k make up."""

    def __init__(self, checkpoint: GitCheckpoint, steps: int, seed: int) -> None:
        self._checkpoint = checkpoint
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        rng, grain = random.Random(f"{self._seed} {step}"), np.random.default_rng((self._seed, step))
        now = lesson(step / self._steps)
        scenes = [random_scene(rng, now.two, avoid=unseen_pairs(), spread=now.spread) for _ in range(BATCH)]
        pictures = resize_and_crop(self._checkpoint.image_processor, [draw(scene, grain) for scene in scenes])
        tokens = [[self._checkpoint.tokenizer(now.tell(scene))["input_ids"]] for scene in scenes]
        return swap_words(collate(self._checkpoint, pictures, tokens), MISREAD, (self._seed, step, 1))


def pretrain(seed: int = SEED, steps: int = STEPS) -> GitCheckpoint:
    """Train a new GIT on `steps * BATCH` scenes."""
    # For bit-for-bit repeatable matrix products on a GPU; cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    checkpoint = Git().scratch(SIZES, _texts(), MAX_TOKENS)
    config = checkpoint.model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = DROPOUT  # read when it is loaded, not now
    checkpoint.model.set_caption_length(MAX_TOKENS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = checkpoint.model.to(device).train()
    optimizer = adamw(model, LEARNING_RATE, WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    compute_loss = CaptionLoss(model)
    # One process beside this one draws the next scenes.
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
            bar.write(f"pretrain: step {step + 1:6,}/{steps:,}  train loss {mean:.4f} nats a token")
    return checkpoint


def _texts() -> list[str]:
    """What the tokenizer is made from: its words are those of the sample too, though the model never saw them used."""
    rng = random.Random(0)
    scenes: list[Scene] = [random_scene(rng, avoid=unseen_pairs()) for _ in range(_TEXTS)]
    captions = [caption for scene in scenes for caption in (plain(scene), *instagram(scene, rng))]
    letters = [word for letter in _LETTERS for word in (letter, f"a{letter}")]
    return [*captions, *letters, *_EMOJI]


def _rate(step: int, steps: int) -> float:
    """The learning rate as a part of the highest: up over the warm-up, level, down on half a cosine."""
    falling = max(0.0, (step - (1 - FALL) * steps) / (FALL * steps))
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * falling))


def card(figures: Figures, parameters: int, seed: int, steps: int, minutes: float, beside: Figures | None) -> str:
    """The model card, as Hugging Face reads it; `beside` are the figures of another seed."""
    columns = {"this one": figures} | ({"another seed": beside} if beside else {})
    lines = [
        f"| {figures['seen_combinations']['scenes']:.0f} scenes each | combinations | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for kind in figures:
        for key, what in _COUNTED.items():
            shares = " | ".join(f"{100 * of_it[kind][key]:.1f} %" for of_it in columns.values())
            lines.append(f"| {what} | {kind.split('_')[0]} | {shares} |")
    return _CARD.format(
        parameters=f"{parameters / 1e6:.2f}",
        many=len(COLOURS),
        colours=", ".join(COLOURS),
        count=len(THINGS),
        kinds=", ".join(THINGS),
        places=", ".join(place.where for place in PLACES.values()),
        unseen=", ".join(f"{colour} {kind}" for colour, kind in sorted(unseen_pairs())),
        table="\n".join(lines),
        seed=seed,
        steps=steps,
        batch=BATCH,
        misread=f"{100 * MISREAD:.0f}",
        scenes=f"{steps * BATCH:,}",
        minutes=f"{minutes:.0f}",
        dropout=DROPOUT,
        device="GPU" if torch.cuda.is_available() else "CPU",
        threads=torch.get_num_threads(),
    )


_COUNTED = {
    "plain": "plain caption, word for word",
    "named": "every colour and thing named",
    "named_of_one": "the same, of one thing",
    "named_of_two": "the same, of two things",
}
_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: image-to-text
---

# git-demo

A small GIT ({parameters} million parameters) that tells drawn scenes in plain words: "a small red boat left of a big
blue lighthouse on the beach". It is there to be fine-tuned: small enough for a laptop, and it can see. Stock
`transformers` loads it with `AutoModelForCausalLM` and `AutoProcessor`.

## What it can tell, and what it can't

It knows {count} things ({kinds}) in {many} colours ({colours}) and two sizes, one or two of them
{places}; of two it names the left one first.

It knows these drawings and nothing else: of a photograph it says nonsense. A thing is always found in its own
places, so it would not know a teapot on the beach. It has no capital letters. Its tokenizer can spell every English
word, and has many emoji and the words of the sample's Instagram voices as whole pieces, but the model has never
seen these used.

## Figures

The scenes are new ones. In those with *unseen* combinations every thing has a colour in which training never showed
it: {unseen}.
Captions are by greedy search; "named" means in exact words, side by side ("red boat").

{table}

## How it was made

    python -m pipeline.synthetic.pretrain models/git-demo --seed {seed} --steps {steps}

{scenes} scenes, none shown twice, {batch} a step: first the kinds of things alone, big and in the middle, then ever
more freely placed and sized, then with sizes and colours, then two in half of the scenes. {misread} % of the words that
the model reads on from are taken from other captions, so that it has to look. It took {minutes} minutes on a {device},
threads: {threads}, without dropout; for fine-tuning its configuration asks for {dropout}. The same seed, machine and
number of threads give the same weights.
"""


def main() -> None:
    """Command line: train, measure, and write the checkpoint with its card."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthetic.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint is written")
    parser.add_argument("--seed", type=int, default=SEED, help="of weights and scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to measure on (default: %(default)s)")
    parser.add_argument("--beside", type=Path, help="a checkpoint of another seed, whose figures the card shows too")
    args = parser.parse_args()
    beside = read_json(args.beside / _NOTE) if args.beside else None
    began = time.monotonic()
    checkpoint = pretrain(args.seed, args.steps)
    minutes = (time.monotonic() - began) / 60
    figures = sight(Captioner(checkpoint), args.scenes)
    with swapped_in(args.folder) as (folder,):
        checkpoint.save(folder)
        write_json(folder / _NOTE, {"seed": args.seed, "steps": args.steps, "minutes": round(minutes), **figures})
        text = card(figures, checkpoint.model.num_parameters(), args.seed, args.steps, minutes, beside)
        (folder / "README.md").write_text(text, encoding="utf-8")
    named = figures["unseen_combinations"]["named"]
    print(
        f"pretrain: {args.folder} names every colour and thing in {100 * named:.1f} % of the scenes with unseen"
        f" combinations; {args.folder / 'README.md'} has all figures; next: `dvc add` it, as `make pretrain` does"
    )


if __name__ == "__main__":
    main()
