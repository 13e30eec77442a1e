"""Which architecture to take with few photos: all of them on the same folds of real photographs, beside naive answers.

Each of five folds is the test split once; of the other photos, or as many of them as a size says, an eighth is for
validation. All architectures get the same epochs, and the best epoch by validation CIDEr-D is tested with 3 beams.
Features of frozen image encoders are computed once. A run is a line of `benchmarks/results/architectures.jsonl`; runs
that are there are not repeated. Checkpoints that other benchmarks start from are kept in `.work/benchmarks`.

`python -m benchmarks.architectures --folds 0 1 --seeds 0 --names cnn-lstm --sizes 100` makes some runs.
`python -m benchmarks architectures` makes all: five folds and three seeds with all photos, one fold with fewer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks import Figure, UnavailableError
from benchmarks._training import RATES, Pictures, Silent, captioned, prepared, settings
from benchmarks._workspace import ROOT, run, workspace
from pipeline.data.dataset import Example
from pipeline.evaluation import baselines
from pipeline.evaluation.consensus import Utility
from pipeline.evaluation.metrics.scoring import statistics as statistics_of
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models import factory
from pipeline.models.base import Checkpoint, Decoding
from pipeline.runtime.state_store import StateStore

PHOTOS = ROOT.parent / "shared/data/flickr8k_500"
RESULTS = Path(__file__).parent / "results"
RUNS, TABLE = RESULTS / "architectures.jsonl", RESULTS / "architectures.md"
FOLDS, SEEDS, BEAMS = 5, 3, 3
ALL = 400  # photos beside the test fold
# Photos to train and validate with -> epochs: fewer photos are seen more often, because an epoch has fewer steps.
EPOCHS = {50: 40, 100: 30, 200: 20, ALL: 12}
NAIVE = ("most frequent", "nearest in pixels", "nearest in CNN features", "consensus of 20")
KEEP = ("cnn-attention",)  # architectures whose checkpoints are kept
KEPT = ROOT / ".work/benchmarks"
NEAREST = 20
SHOWN = ("CIDEr-D", "BLEU-1", "BLEU-4")
GOAL = 1.15  # times the consensus of the 20 nearest


class Photos(Pictures):
    """The photos, in folds."""

    def fold(self, number: int, size: int = ALL) -> tuple[list[int], list[int], list[int]]:
        """Return the indices of the training, validation and test photos; the first two have `size` together."""
        rest = [i for i in range(len(self.examples)) if i % FOLDS != number][:size]
        return [i for k, i in enumerate(rest) if k % 8], rest[::8], list(range(number, len(self.examples), FOLDS))


@dataclass(frozen=True)
class Training:
    """A training in numbers.

    Attributes:
        best_epoch: its number, from 1.
        validation_cider: CIDEr-D of the best epoch on the validation photos, greedy search.
        parameters: that were trained.
        seconds: CPU seconds, without the encoding of photos.
    """

    best_epoch: int
    validation_cider: float
    parameters: int
    seconds: float


def best_checkpoint(photos: Photos, name: str, fold: int, seed: int, size: int = ALL) -> tuple[Checkpoint, Training]:
    """Train one architecture on one fold, unless that is kept; return its best epoch, and the training."""
    place = KEPT / f"{name}-{size}-{fold}-{seed}"
    if (place / "run.json").exists():
        return factory.load(place), Training(**json.loads((place / "run.json").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(Path(folder))
        training = _train(photos, name, fold, seed, size, store)
        if name in KEEP:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(store.best, place)
            (place / "run.json").write_text(json.dumps(asdict(training)))
        return factory.load(store.best), training


def _train(photos: Photos, name: str, fold: int, seed: int, size: int, store: StateStore) -> Training:
    train, validation, _ = photos.fold(fold, size)
    trainer = prepared(photos, name, settings(name, EPOCHS[size], seed), train, validation, store)
    start = time.process_time()
    trainer.fit(Silent(), lambda: False)
    seconds = time.process_time() - start
    best = trainer.best_epoch
    return Training(best.epoch, best.validation_cider, trainer.trained_parameters, seconds)


def trained(photos: Photos, name: str, fold: int, size: int, seed: int) -> dict[str, object]:
    """Train one architecture on one fold; return its scores on the fold's test photos and its cost."""
    best, training = best_checkpoint(photos, name, fold, seed, size)
    examples, test = photos.examples, photos.fold(fold, size)[2]
    photos.inputs(name, best)  # computed once, before the clock starts
    start = time.process_time()
    texts = captioned(photos, name, best, test, Decoding(beams=BEAMS))
    spent = time.process_time() - start
    return {
        "name": name,
        "fold": fold,
        "seed": seed,
        "photos": size,
        "epochs": EPOCHS[size],
        **scores(texts, [examples[i] for i in test]),
        "validation CIDEr-D": round(training.validation_cider, 4),
        "best epoch": training.best_epoch,
        "trained parameters": training.parameters,
        "CPU seconds": round(training.seconds),
        "captions per CPU second": round(len(test) / spent, 1),
        "captions": texts[:8],
    }


def naive(photos: Photos, name: str, fold: int, size: int) -> dict[str, object]:
    """Return the scores of an answer that takes no training."""
    train, validation, test = photos.fold(fold, size)
    known = sorted(train + validation)
    examples = [photos.examples[i] for i in known]
    if name == "most frequent":
        texts = [baselines.most_frequent(examples)] * len(test)
    elif name == "nearest in pixels":
        texts = baselines.nearest(examples, (photos.bytes[i] for i in known), (photos.bytes[i] for i in test))
    else:
        pooled = torch.nn.functional.normalize(photos.features().mean(dim=1), dim=1)
        closest = (pooled[test] @ pooled[known].T).topk(NEAREST, dim=1).indices.tolist()
        if name == "nearest in CNN features":
            texts = [examples[row[0]].captions[0] for row in closest]
        else:
            captions = [example.captions for example in examples]
            texts = baselines.consensus(Utility(captions), captions, closest)
    found = scores(texts, [photos.examples[i] for i in test])
    return {"name": name, "fold": fold, "seed": 0, "photos": size, **found, "captions": texts[:8]}


def scores(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Return the scores of captions."""
    references = [[ptb_tokenize(caption) for caption in example.captions] for example in examples]
    found = statistics_of([ptb_tokenize(text.strip()) for text in texts], references).scores()
    return {name: round(found[name], 4) for name in SHOWN}


def opened_photos() -> Photos:
    """Return all photos as the pipeline ingests them.

    Raises:
        UnavailableError: they are not on this machine.
    """
    if not PHOTOS.is_dir():
        raise UnavailableError(f"needs photos in {PHOTOS}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace(Path(temporary), {"ingest.sources": ["photos"]})
        (folder / "data/raw").mkdir(parents=True)
        (folder / "data/raw/photos").symlink_to(PHOTOS)
        run(folder, "-m", "pipeline.ingest", "photos")
        run(folder, "-m", "pipeline.build")
        return Photos(folder / "data/dataset")


def make(folds: Sequence[int], seeds: Sequence[int], names: Sequence[str], sizes: Sequence[int] = (ALL,)) -> list[dict]:
    """Make the runs that are missing, one seed, size and fold after the other; return all runs."""
    photos = opened_photos()
    present = {(line["name"], line["fold"], line["photos"], line["seed"]) for line in _runs()}
    torch.use_deterministic_algorithms(True)
    for seed, size, fold in product(seeds, sizes, folds):
        for name in [*(NAIVE if seed == 0 else ()), *names]:
            if (name, fold, size, seed) in present:
                continue
            line = naive(photos, name, fold, size) if name in NAIVE else trained(photos, name, fold, size, seed)
            print({key: value for key, value in line.items() if key != "captions"}, flush=True)
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
    write_table(_runs())
    return _runs()


def _runs() -> list[dict]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def write_table(lines: Sequence[dict]) -> None:
    """Write the means over folds and seeds: one table of the runs with all photos, one of all sizes."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if line["photos"] == ALL:
            groups[line["name"]].append(line)
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: -_mean(item[1], "CIDEr-D")):
        places = f"{len({x['fold'] for x in group})} x {len({x['seed'] for x in group})}"
        each = [x["CIDEr-D"] for x in group]
        spread = f"{min(each):.3f} to {max(each):.3f}"
        cost = ["", "", ""]
        if "CPU seconds" in group[0]:
            cost = [
                f"{group[0]['trained parameters'] / 1e6:.2f} M",
                f"{_mean(group, 'CPU seconds'):.0f}",
                f"{_mean(group, 'captions per CPU second'):.0f}",
            ]
        values = [f"{_mean(group, score):.3f}" for score in SHOWN]
        others = " | ".join([*values[1:], *cost])
        rows.append(f"| {name} | {len(group)} ({places}) | **{values[0]}** | {spread} | {others} |")
    text = _TEXT.format(
        rows="\n".join(rows),
        epochs=EPOCHS[ALL],
        beams=BEAMS,
        folds=FOLDS,
        runs=len(lines),
        sizes=" | ".join(map(str, EPOCHS)),
        lines="---|" * (1 + len(EPOCHS)),
        by_size="\n".join(_by_size(lines)),
        epochs_by_size=", ".join(f"{epochs} with {size}" for size, epochs in EPOCHS.items()),
    )
    TABLE.write_text(text)


def _by_size(lines: Sequence[dict]) -> list[str]:
    """Return the rows of the table of sizes: CIDEr-D of the first fold, and the number of runs."""
    rows = []
    for name in [*RATES, *NAIVE]:
        cells = []
        for size in EPOCHS:
            each = [x for x in lines if x["name"] == name and x["photos"] == size and x["fold"] == 0]
            cells.append(f"{_mean(each, 'CIDEr-D'):.3f} ({len(each)})" if each else "-")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _mean(lines: Sequence[dict], key: str) -> float:
    return statistics.fmean(line[key] for line in lines)


_TEXT = """# Architectures on 500 photographs

Photos: 500 of Flickr8k, the first in its list, with five captions each, in {folds} folds. Per run about 350
photos train, 50 validate and 100 test. All architectures get {epochs} epochs with all captions of a picture, label
smoothing 0.1 and the rates in `benchmarks/architectures.py`; the best epoch by validation CIDEr-D is tested with
{beams} beams. The naive answers take their captions from training and validation photos. One thread of a loaded
machine; CPU seconds are those of the training with its validation, without the encoding of all photos once.

`python -m benchmarks.architectures` made these {runs} runs (`architectures.jsonl`):

| | runs (folds x seeds) | CIDEr-D | lowest to highest | BLEU-1 | BLEU-4 | trained | CPU s | captions/CPU s |
|---|---|---|---|---|---|---|---|---|
{rows}

## With fewer photos

CIDEr-D on the 100 test photos of the first fold, by the number of photos to train and validate with, in parentheses the
number of seeds. Epochs: {epochs_by_size}.

| photos | {sizes} |
|{lines}
{by_size}
"""


def figures() -> list[Figure]:
    """Make all runs, and compare the best architecture with the consensus of the nearest photos."""
    make([0], range(SEEDS), list(RATES), [size for size in EPOCHS if size != ALL])
    lines = [line for line in make(range(FOLDS), range(SEEDS), list(RATES)) if line["photos"] == ALL]
    means = {name: _mean([x for x in lines if x["name"] == name], "CIDEr-D") for name in [*RATES, *NAIVE]}
    best = max(RATES, key=lambda name: means[name])
    consensus = NAIVE[-1]
    return [
        Figure(
            figure="test CIDEr-D of the best architecture on 500 photographs, beside the consensus of 20 pictures",
            value=round(means[best] / means[consensus], 3),
            unit="x",
            goal=GOAL,
            better="higher",
            runs=FOLDS * SEEDS,
            a=f"{best}: {means[best]:.3f}",
            b=f"{consensus}: {means[consensus]:.3f}",
        )
    ]


def main() -> None:
    """Command line: some of the runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description="Make some of the runs.")
    parser.add_argument("--folds", type=int, nargs="*", default=range(FOLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=range(SEEDS))
    parser.add_argument("--names", nargs="*", default=list(RATES), help=f"of {', '.join(RATES)} (default: all)")
    parser.add_argument("--sizes", nargs="*", type=int, choices=EPOCHS, default=[ALL], help="(default: %(default)s)")
    options = parser.parse_args()
    make(options.folds, options.seeds, options.names, options.sizes)


if __name__ == "__main__":
    main()
