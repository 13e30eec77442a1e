"""Where self-critical training helps, and where it learns by heart: before and after it, on three kinds of data.

A model is trained with cross-entropy, and from its best epoch with self-critical training; both models caption the same
test pictures. CIDEr-D is the reward; ROUGE-L and the recall of content words are not. A run is a line of
`benchmarks/results/self_critical_study.jsonl`; runs that are there are not repeated.

`python -m benchmarks.self_critical_study --kinds photographs --seeds 0` makes some runs.
`python -m benchmarks self_critical_study` makes all, three seeds of each kind.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import Figure, UnavailableError
from benchmarks._training import Pictures, Silent, captioned, prepared, settings
from benchmarks._workspace import run, workspace
from benchmarks.architectures import ALL, BEAMS, EPOCHS, PHOTOS, RESULTS, opened_photos
from pipeline.data.text import clean
from pipeline.evaluation.diversity import wording
from pipeline.evaluation.metrics.scoring import corpus_scores
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models import factory
from pipeline.models.base import Decoding
from pipeline.runtime.state_store import StateStore
from pipeline.synthetic.sample import write_sample

RUNS, TABLE = RESULTS / "self_critical_study.jsonl", RESULTS / "self_critical_study.md"
INSTAGRAM = PHOTOS.parent / "instagram/captions_csv.csv"
SEEDS = 3
TRAINING, VALIDATION, TEST = 750, 100, 300  # drawn scenes
Parts = tuple[Pictures, list[int], list[int], list[int]]  # and the indices to train, validate and test with
SHOWN = 10  # test pictures whose captions are recorded
FIGURES = ("CIDEr-D", "BLEU-4", "ROUGE-L", "content_recall", "distinct_captions", "copied", "unfinished", "loops")
GAIN, DISTINCT = 1.1, 0.9  # the goals on drawn scenes


@dataclass(frozen=True)
class Kind:
    """A kind of data to study.

    Attributes:
        start: what the training starts from.
        epochs: with cross-entropy.
        self_critical: epochs after them.
        parts: returns the pictures of a seed, and the indices of those to train, validate and test with.
    """

    start: str
    epochs: int
    self_critical: int
    parts: Callable[[int], Parts]


def scenes(seed: int) -> Parts:
    """Return drawn scenes; each seed has scenes of its own."""
    count = TRAINING + VALIDATION + TEST
    shares = {"build.validation": VALIDATION / count, "build.test": TEST / count}
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace(Path(temporary), {"ingest.sources": ["scenes"], **shares})
        write_sample(folder / "data/raw/scenes", count, seed=100 + seed)
        run(folder, "-m", "pipeline.ingest", "scenes")
        run(folder, "-m", "pipeline.build")
        pictures = Pictures(folder / "data/dataset")
    return pictures, pictures.split("train"), pictures.split("validation"), pictures.split("test")


def photographs(seed: int) -> Parts:
    """Return the photos of `architectures` and the fold whose number is the seed."""
    photos = opened_photos()
    return photos, *photos.fold(seed)


def strangers(seed: int) -> Parts:
    """Return the photos, each with a caption from Instagram that does not belong to it."""
    if not INSTAGRAM.is_file():
        raise UnavailableError(f"needs captions in {INSTAGRAM}")
    photos = opened_photos()
    with INSTAGRAM.open(encoding="utf-8", newline="") as file:
        texts = [text for row in csv.DictReader(file) if len((text := clean(row["Caption"])).split()) > 1]
    photos.examples = [replace(e, captions=[text]) for e, text in zip(photos.examples, texts, strict=False)]
    return photos, *photos.fold(seed)


KINDS = {
    "750 drawn scenes": Kind("git-demo", 20, 6, scenes),
    "photographs": Kind("cnn-attention", EPOCHS[ALL], 6, photographs),
    "Instagram captions": Kind("cnn-attention", EPOCHS[ALL], 6, strangers),
}


class Before(Silent):
    """Copies the best epoch with cross-entropy, before self-critical training replaces it."""

    def __init__(self, store: StateStore, epochs: int, folder: Path) -> None:
        self._store, self._epochs, self._folder = store, epochs, folder
        self.seconds = 0.0

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Copy the best epoch if this is the last one with cross-entropy; `step` is the epoch or a step of one."""
        if step == self._epochs and "epoch/validation_cider" in values:
            shutil.copytree(self._store.best, self._folder)
            self.seconds = time.process_time()


def studied(name: str, seed: int) -> dict[str, object]:
    """Train a model on a kind of data; return what it says before and after self-critical training."""
    kind = KINDS[name]
    pictures, train, validation, test = kind.parts(seed)
    chosen = settings(kind.start, kind.epochs, seed)
    self_critical = chosen.self_critical.model_copy(update={"epochs": kind.self_critical})
    chosen = chosen.model_copy(update={"self_critical": self_critical})
    with tempfile.TemporaryDirectory() as temporary:
        store, before = StateStore(Path(temporary) / "states"), Path(temporary) / "before"
        trainer = prepared(pictures, kind.start, chosen, train, validation, store)
        logger, start = Before(store, kind.epochs, before), time.process_time()
        trainer.fit(logger, lambda: False)
        end = time.process_time()
        texts = {
            when: captioned(pictures, kind.start, factory.load(folder), test, Decoding(beams=BEAMS))
            for when, folder in (("before", before), ("after", store.best))
        }
    training = [caption for i in train for caption in pictures.examples[i].captions]
    captions = [pictures.examples[i].captions for i in test]
    epochs = trainer.state.epochs
    return {
        "kind": name,
        "seed": seed,
        "training pictures": len(train),
        "test pictures": len(test),
        **{when: figures_of(said, captions, training) for when, said in texts.items()},
        "kept epoch": trainer.best_epoch.epoch,
        "validation CIDEr-D": [round(epoch.validation_cider, 4) for epoch in epochs],
        "reward": [round(epoch.reward, 4) for epoch in epochs if epoch.is_self_critical],
        "CPU seconds": [round(logger.seconds - start), round(end - logger.seconds)],
        "captions": [list(pair) for pair in zip(texts["before"][:SHOWN], texts["after"][:SHOWN], strict=True)],
    }


def figures_of(texts: Sequence[str], captions: Sequence[Sequence[str]], training: Sequence[str]) -> dict[str, float]:
    """Return the figures of one caption per test picture."""
    references = [[ptb_tokenize(caption) for caption in several] for several in captions]
    scores = corpus_scores([ptb_tokenize(text.strip()) for text in texts], references)
    found = {**scores, **wording(texts, captions, training)}
    return {name: round(value, 4) for name in FIGURES if (value := found[name]) is not None}


def make(kinds: Sequence[str], seeds: Sequence[int]) -> list[dict]:
    """Make the runs that are missing, and write the table; return all runs."""
    torch.use_deterministic_algorithms(True)
    present = {(line["kind"], line["seed"]) for line in _runs()}
    for seed in seeds:
        for kind in kinds:
            if (kind, seed) in present:
                continue
            line = studied(kind, seed)
            print({key: line[key] for key in ("kind", "seed", "before", "after", "reward", "CPU seconds")}, flush=True)
            with RUNS.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_table(_runs())
    return _runs()


def _runs() -> list[dict]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def _mean(lines: Sequence[dict], when: str, figure: str) -> float:
    return statistics.fmean(line[when][figure] for line in lines)


def write_table(lines: Sequence[dict]) -> None:
    """Write the means of each kind, and the captions of its first run."""
    rows, shown = [], []
    for kind in KINDS:
        group = [line for line in lines if line["kind"] == kind]
        if not group:
            continue
        kept = sum(line["kept epoch"] > KINDS[kind].epochs for line in group)
        reward = " to ".join(f"{statistics.fmean(line['reward'][k] for line in group):.2f}" for k in (0, -1))
        cells = []
        for figure in FIGURES:
            if all(figure in line["before"] for line in group):
                before, after = (_mean(group, when, figure) for when in ("before", "after"))
                cells.append(f"{before:.3f} -> {after:.3f}")
            else:
                cells.append("")
        gains = ", ".join(f"{line['after']['CIDEr-D'] - line['before']['CIDEr-D']:+.3f}" for line in group)
        rows.append(f"| {kind} | {len(group)} | {kept} | {reward} | {' | '.join([cells[0], gains, *cells[1:]])} |")
        first = group[0]
        shown += [f"\n### {kind}\n", "| before | after |", "|---|---|"]
        shown += ["| " + " | ".join(text.replace("|", "\\|") for text in pair) + " |" for pair in first["captions"]]
    heads = " | ".join(["CIDEr-D", "gain of each seed", *(name.replace("_", " ") for name in FIGURES[1:])])
    lines_of_table = "---|" * (5 + len(FIGURES))
    TABLE.write_text(
        _TEXT.format(heads=heads, lines=lines_of_table, rows="\n".join(rows), beams=BEAMS, shown="\n".join(shown))
    )


_TEXT = """# Self-critical training

Means over the seeds on test pictures, before -> after self-critical training, with {beams} beams. *Kept*: runs in which
an epoch of it was kept, because its CIDEr-D on validation pictures was the highest; in the others before and after are
the same model. *Reward*: the mean CIDEr-D of the samples of training pictures in its first and last epoch. CIDEr-D is
the reward; ROUGE-L and the recall of content words are not.

* Drawn scenes: from `git-demo`, 20 epochs and 6 self-critical ones. Each seed has scenes of its own, {test} of them for
  the test.
* Photographs: `cnn-attention` on 350 photos of Flickr8k with five captions each, 12 epochs and 6 self-critical ones.
  Each seed has its own fold of [architectures.md](architectures.md), 100 photos for the test.
* Instagram captions: the same photos, each with one caption from Instagram that does not belong to it. There is nothing
  to see in the pictures, so what is learned is style, or by heart.

`python -m benchmarks.self_critical_study` made the runs (`self_critical_study.jsonl`):

| | seeds | kept | reward | {heads} |
|{lines}
{rows}

## What the models say

The first test pictures of the first seed.
{shown}
""".replace("{test}", str(TEST))


def figures() -> list[Figure]:
    """Make all runs, and compare before and after on drawn scenes."""
    lines = [line for line in make(tuple(KINDS), range(SEEDS)) if line["kind"] == "750 drawn scenes"]

    def figure(text: str, name: str, goal: float) -> Figure:
        after, before = _mean(lines, "after", name), _mean(lines, "before", name)
        names = (f"after: {after:.3f}", f"before: {before:.3f}")
        return Figure(text, round(after / before, 3), "x", goal, "higher", len(lines), *names)

    return [
        figure("test CIDEr-D after self-critical training, beside before, 750 drawn scenes", "CIDEr-D", GAIN),
        figure("share of distinct captions after self-critical training", "distinct_captions", DISTINCT),
    ]


def main() -> None:
    """Command line: some of the runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_critical_study", description="Make some runs.")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=tuple(KINDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=range(SEEDS))
    options = parser.parse_args()
    make(options.kinds, options.seeds)


if __name__ == "__main__":
    main()
