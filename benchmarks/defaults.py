"""Why the defaults of `finetune` are what they are: what a change of each does, with few pictures and with many.

Scenes are drawn, about 100 and 1,000 of them to learn from (30,000 too where the environment variable
IMAGE_CAPTIONING_STUDY is `full`; hours), and 300 to judge by; git-demo is fine-tuned as shipped and with one param
changed at a time, of more pictures those that concern time and rate. The table of the best CIDEr-D is in
benchmarks/results/defaults.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Figure
from benchmarks._workspace import run, set_params, workspace
from pipeline.data.dataset import read_examples
from pipeline.synthetic.sample import write_sample
from pipeline.training.history import read_history

JUDGES = 300  # validation pictures
WAYS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "epochs: 12": {"epochs": 12},
    "epochs: 40": {"epochs": 40},
    "learning_rate: 3e-4": {"learning_rate": 3e-4},
    "learning_rate: 3e-3": {"learning_rate": 3e-3},
    "schedule: constant_with_warmup": {"schedule": "constant_with_warmup"},
    "batch_size: 32": {"batch_size": 32},
    "captions_per_picture: 1": {"captions_per_picture": 1},
    "label_smoothing: 0.1": {"label_smoothing": 0.1},
    "freeze: none": {"freeze": "none"},
    "lora.rank: 8": {"lora.rank": 8},
    "augmentation: crop 0.2, colour 0.2": {"augmentation.crop": 0.2, "augmentation.colour": 0.2},
}
OF_MORE = (
    "as shipped",
    "epochs: 12",
    "epochs: 40",
    "learning_rate: 3e-4",
    "learning_rate: 3e-3",
    "schedule: constant_with_warmup",
    "batch_size: 32",
    "captions_per_picture: 1",
)
# Of 30,000 pictures an epoch takes minutes.
WAYS_OF_MANY: dict[str, dict[str, object]] = {
    "as shipped, but epochs: 2": {"epochs": 2},
    "epochs: 2, learning_rate: 3e-4": {"epochs": 2, "learning_rate": 3e-4},
    "epochs: 2, batch_size: 32": {"epochs": 2, "batch_size": 32},
}
RESULT = Path(__file__).parent / "results" / "defaults.md"
HEAD = "# What a change of one param does\n\nSeconds are rough: runs stand beside whatever else the machine does.\n\n"
GOAL = 0.95  # of the best way's CIDEr-D


@dataclass(frozen=True)
class Learned:
    """What a way of training came to, over its seeds: the mean and the spread of the best CIDEr-D, and the seconds."""

    cider: float
    spread: float
    seconds: float


def study(pictures: int, ways: dict[str, dict[str, object]], seeds: int) -> tuple[int, dict[str, Learned]]:
    """The number of pictures that were learned from, and what each way came to."""
    with tempfile.TemporaryDirectory() as temporary:
        share = JUDGES / (pictures + JUDGES)
        folder = workspace(Path(temporary), {"build.test": 0.0, "build.validation": share})
        write_sample(folder / "data/raw/sample", pictures + JUDGES, seed=7)
        run(folder, "-m", "pipeline.ingest", "sample")
        run(folder, "-m", "pipeline.build")
        shipped = (folder / "params.yaml").read_text()
        found = {}
        for name, changes in ways.items():
            best, took = [], []
            for seed in range(seeds):
                (folder / "params.yaml").write_text(shipped)
                set_params(folder, {f"finetune.{key}": value for key, value in {**changes, "seed": seed}.items()})
                begin = time.perf_counter()
                run(folder, "-m", "pipeline.finetune")
                took.append(time.perf_counter() - begin)
                best.append(max(epoch.validation_cider for epoch in read_history(folder / "reports/finetune.csv")))
            found[name] = Learned(statistics.fmean(best), max(best) - min(best), statistics.median(took))
            print(f"  {pictures:,} pictures, {name}: {found[name]}", flush=True)
        return len(read_examples(folder / "data/dataset/train")), found


def figures() -> list[Figure]:
    """How near the defaults come to the best of all ways, for each number of pictures."""
    sizes = {100: (WAYS, 2), 1_000: ({name: WAYS[name] for name in OF_MORE}, 1)}
    if os.environ.get("IMAGE_CAPTIONING_STUDY") == "full":
        sizes[30_000] = (WAYS_OF_MANY, 1)
    tables, results = [], []
    for pictures, (ways, seeds) in sizes.items():
        learned_from, found = study(pictures, ways, seeds)
        tables.append(_table(learned_from, found, seeds))
        shipped = next(iter(found.values()))
        name, best = max(found.items(), key=lambda item: item[1].cider)
        results.append(
            Figure(
                figure=f"CIDEr-D of `finetune` as shipped, {learned_from:,} pictures, beside the best of {len(ways)}",
                value=round(shipped.cider / best.cider, 3),
                unit="x",
                goal=GOAL,
                better="higher",
                runs=seeds,
                a=f"as shipped: {shipped.cider:.3f}",
                b=f"{name}: {best.cider:.3f}",
            )
        )
    RESULT.write_text(HEAD + "\n".join(tables))
    return results


def _table(learned_from: int, found: dict[str, Learned], seeds: int) -> str:
    spread = " | spread" if seeds > 1 else ""
    lines = [
        f"## {learned_from:,} pictures to learn from",
        "",
        f"The best CIDEr-D of an epoch on about {JUDGES} validation pictures"
        + (
            f", the mean of {seeds} seeds and the difference between the best and the worst of these."
            if spread
            else "."
        ),
        "",
        f"| | CIDEr-D{spread} | seconds |",
        "|---|---|---|" + ("---|" if spread else ""),
    ]
    for name, learned in found.items():
        between = f" | {learned.spread:.3f}" if spread else ""
        lines.append(f"| {name} | {learned.cider:.3f}{between} | {learned.seconds:.0f} |")
    return "\n".join(lines) + "\n"
