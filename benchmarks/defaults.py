"""Why `finetune` has these defaults: what a change of each one does, with few pictures and with many.

It draws about 100 and 1,000 training scenes (with the environment variable IMAGE_CAPTIONING_STUDY=full also 30,000,
which takes hours) and 300 validation scenes, and fine-tunes git-demo with default settings and with one param changed
at a time. With more pictures only params of duration and learning rate are changed. The best CIDEr-D of each run goes
to benchmarks/results/defaults.md.
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

VALIDATION_PICTURES = 300
SETTINGS: dict[str, dict[str, object]] = {
    "default settings": {},
    "epochs: 12": {"epochs": 12},
    "epochs: 20": {"epochs": 20},
    "epochs: 40": {"epochs": 40},
    "epochs: 80": {"epochs": 80},
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
SETTINGS_1000 = (
    "default settings",
    "epochs: 12",
    "epochs: 20",
    "epochs: 40",
    "learning_rate: 3e-4",
    "learning_rate: 3e-3",
    "schedule: constant_with_warmup",
    "batch_size: 32",
    "captions_per_picture: 1",
)
# One epoch over 30,000 pictures takes minutes.
SETTINGS_30000: dict[str, dict[str, object]] = {
    "default settings, but epochs: 2": {"epochs": 2},
    "epochs: 2, learning_rate: 3e-4": {"epochs": 2, "learning_rate": 3e-4},
    "epochs: 2, batch_size: 32": {"epochs": 2, "batch_size": 32},
}
RESULT = Path(__file__).parent / "results" / "defaults.md"
HEAD = "# What a change of one param does\n\nSeconds are rough: runs stand beside whatever else the machine does.\n\n"
GOAL = 0.95  # of the best setting's CIDEr-D


@dataclass(frozen=True)
class Outcome:
    """Mean and spread of the best CIDEr-D over the seeds, and the median seconds of a run."""

    cider: float
    spread: float
    seconds: float


def study(pictures: int, settings: dict[str, dict[str, object]], seeds: int) -> tuple[int, dict[str, Outcome]]:
    """Return the number of training pictures and the outcome of each setting."""
    with tempfile.TemporaryDirectory() as temporary:
        share = VALIDATION_PICTURES / (pictures + VALIDATION_PICTURES)
        folder = workspace(Path(temporary), {"build.test": 0.0, "build.validation": share})
        write_sample(folder / "data/raw/sample", pictures + VALIDATION_PICTURES, seed=7)
        run(folder, "-m", "pipeline.ingest", "sample")
        run(folder, "-m", "pipeline.build")
        default_params = (folder / "params.yaml").read_text()
        outcomes = {}
        for name, changes in settings.items():
            best, took = [], []
            for seed in range(seeds):
                (folder / "params.yaml").write_text(default_params)
                set_params(folder, {f"finetune.{key}": value for key, value in {**changes, "seed": seed}.items()})
                begin = time.perf_counter()
                run(folder, "-m", "pipeline.finetune")
                took.append(time.perf_counter() - begin)
                best.append(max(epoch.validation_cider for epoch in read_history(folder / "reports/finetune.csv")))
            outcomes[name] = Outcome(statistics.fmean(best), max(best) - min(best), statistics.median(took))
            print(f"  {pictures:,} pictures, {name}: {outcomes[name]}", flush=True)
        return len(read_examples(folder / "data/dataset/train")), outcomes


def figures() -> list[Figure]:
    """How near the defaults come to the best of all settings, for each number of pictures."""
    sizes = {100: (SETTINGS, 2), 1_000: ({name: SETTINGS[name] for name in SETTINGS_1000}, 1)}
    if os.environ.get("IMAGE_CAPTIONING_STUDY") == "full":
        sizes[30_000] = (SETTINGS_30000, 1)
    tables, results = [], []
    for pictures, (settings, seeds) in sizes.items():
        trained_on, outcomes = study(pictures, settings, seeds)
        tables.append(_table(trained_on, outcomes, seeds))
        default = next(iter(outcomes.values()))
        name, best = max(outcomes.items(), key=lambda item: item[1].cider)
        results.append(
            Figure(
                figure=f"CIDEr-D of `finetune` with default settings, {trained_on:,} pictures,"
                f" beside the best of {len(settings)}",
                value=round(default.cider / best.cider, 3),
                unit="x",
                goal=GOAL,
                better="higher",
                runs=seeds,
                a=f"default settings: {default.cider:.3f}",
                b=f"{name}: {best.cider:.3f}",
            )
        )
    RESULT.write_text(HEAD + "\n".join(tables))
    return results


def _table(trained_on: int, outcomes: dict[str, Outcome], seeds: int) -> str:
    spread = " | spread" if seeds > 1 else ""
    lines = [
        f"## {trained_on:,} pictures to learn from",
        "",
        f"The best CIDEr-D of an epoch on about {VALIDATION_PICTURES} validation pictures"
        + (
            f", the mean of {seeds} seeds and the difference between the best and the worst of these."
            if spread
            else "."
        ),
        "",
        f"| | CIDEr-D{spread} | seconds |",
        "|---|---|---|" + ("---|" if spread else ""),
    ]
    for name, learned in outcomes.items():
        between = f" | {learned.spread:.3f}" if spread else ""
        lines.append(f"| {name} | {learned.cider:.3f}{between} | {learned.seconds:.0f} |")
    return "\n".join(lines) + "\n"
