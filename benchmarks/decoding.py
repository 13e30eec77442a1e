"""How to choose a caption: beam search beside minimum Bayes risk and consensus, on the folds of `architectures`.

A model is trained for each fold and seed, and captions the fold's test photos in each way. The index holds the training
photos of the fold. Seconds are those of one thread from the resized picture to the caption, encoding included. A run is
a line of `benchmarks/results/decoding.jsonl`; its captions are kept in `.work/benchmarks`, for the paired intervals.

`python -m benchmarks.decoding --folds 0 1 --seeds 0` makes some runs, `python -m benchmarks decoding` makes all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import Figure
from benchmarks.architectures import FOLDS, KEPT, RESULTS, SEEDS, Photos, best_checkpoint, opened_photos
from pipeline.config.sections.evaluate import DecodingSettings
from pipeline.evaluation.bootstrap import Difference, differences
from pipeline.evaluation.consensus import ranked
from pipeline.evaluation.diversity import copied_share
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.evaluation.metrics.scoring import Statistics
from pipeline.evaluation.metrics.scoring import statistics as statistics_of
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models.captioner import PLAIN, Captioner
from pipeline.models.neighbours import Neighbours

RUNS, TABLE = RESULTS / "decoding.jsonl", RESULTS / "decoding.md"
NAME = "cnn-attention"
# Beam width, and how many words in a row may not occur twice in a caption (0: all may).
SEARCHES = {"beam 3, pairs twice": (3, 0), "beam 3": (3, 2), "beam 4": (4, 2), "beam 10": (10, 2)}
POOLS = {"3 beams, 30 samples": (3, 30), "10 beams": (10, 0), "20 beams": (20, 0)}  # the candidates
METHODS = ("mbr", "consensus", "both")
WAYS = (*SEARCHES, *(f"{method} of {pool}" for pool in POOLS for method in METHODS))
BASE, TIMED, BEST = "beam 3", "beam 4", "both of 20 beams"
CANDIDATES = {"temperature": 0.7, "neighbours": 60, "seed": 0}
STUDIED, NEIGHBOURS = "20 beams", (10, 30, 60, 100)  # the candidates and numbers of neighbours on the validation photos
GAIN, COPIES, COST = 1.1, 1.2, 4.0  # the goals


def made(photos: Photos, fold: int, seed: int) -> dict[str, object]:
    """Train a model on one fold; return the scores and the cost of each way to choose its captions."""
    best, training = best_checkpoint(photos, NAME, fold, seed)
    train, _, test = photos.fold(fold)
    captioner = Captioner(best)
    captions = [photos.examples[i].captions for i in train]
    features = captioner.picture_features([photos.bytes[i] for i in train], "features").astype(np.float16)
    index = Neighbours(features, captions, [photos.examples[i].sha256 for i in train], {})
    assert index.utility  # made once, before the clock starts
    pixels = photos.pixels(best)
    known = [ptb_tokenize(caption) for several in captions for caption in several]
    found: dict[str, dict[str, float]] = {}
    texts: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    parts = [list(pixels[part]) for part in torch.tensor(test).split(8)]
    for way, (beams, size) in SEARCHES.items():
        captioner.generate_by(PLAIN.model_copy(update={"no_repeat_ngram_size": size}))
        start, texts[way] = time.process_time(), []
        for part in parts:
            chosen = captioner.scored(part, [0] * len(part), count=1, beams=beams, sampling=False)
            texts[way] += [several[0].text for several in chosen]
        seconds[way] = time.process_time() - start
    captioner.generate_by(PLAIN.model_copy(update={"no_repeat_ngram_size": 2}))
    for pool, (beams, samples) in POOLS.items():
        captioner.choose_by(_comparing(samples), index)
        start = time.process_time()
        compared = [several for part in parts for several in captioner.compared(part, beams)]
        shared = time.process_time() - start
        for method in METHODS:
            way, start = f"{method} of {pool}", time.process_time()
            texts[way] = [ranked(index.utility, method, *several)[0] for several in compared]
            seconds[way] = shared + time.process_time() - start
    for way in WAYS:
        words = [ptb_tokenize(text) for text in texts[way]]
        scores = _statistics(photos, fold, texts[way]).scores()
        shown = {name: round(scores[name], 4) for name in ("CIDEr-D", "BLEU-4")}
        found[way] = {
            **shown,
            "copied": round(copied_share(words, known), 4),
            "seconds": round(seconds[way] / len(test), 4),
        }
    KEPT.mkdir(parents=True, exist_ok=True)
    _kept(fold, seed).write_text(json.dumps(texts))
    by_beams = round(training.validation_cider, 4)
    validation = {"greedy search, after the epoch": by_beams, **_by_neighbours(photos, fold, captioner, pixels, index)}
    return {"name": NAME, "fold": fold, "seed": seed, "ways": found, "validation": validation}


def _comparing(samples: int, **changes: int) -> DecodingSettings:
    return DecodingSettings(method="both", samples=samples, **(CANDIDATES | changes))  # type: ignore[arg-type]


def _by_neighbours(
    photos: Photos, fold: int, captioner: Captioner, pixels: torch.Tensor, index: Neighbours
) -> dict[str, float]:
    """Return CIDEr-D on the validation photos by the number of neighbours."""
    validation = photos.fold(fold)[1]
    references = [[ptb_tokenize(c) for c in photos.examples[i].captions] for i in validation]
    beams, samples = POOLS[STUDIED]
    scores = {}
    for count in NEIGHBOURS:
        captioner.choose_by(_comparing(samples, neighbours=count), index)
        compared = captioner.compared(list(pixels[torch.tensor(validation)]), beams)
        for method in ("consensus", "both"):
            texts = [ranked(index.utility, method, *several)[0] for several in compared]
            found = cider_d([ptb_tokenize(text) for text in texts], references)
            scores[f"{method} of {count}"] = round(statistics.fmean(found), 4)
    return dict(sorted(scores.items(), key=lambda one: one[0].split(" of ")[0]))


def _kept(fold: int, seed: int) -> Path:
    return KEPT / f"decoding-{fold}-{seed}.json"


def _statistics(photos: Photos, fold: int, texts: Sequence[str]) -> Statistics:
    references = [[ptb_tokenize(c) for c in photos.examples[i].captions] for i in photos.fold(fold)[2]]
    return statistics_of([ptb_tokenize(text) for text in texts], references)


def make(folds: Sequence[int], seeds: Sequence[int]) -> list[dict]:
    """Make the runs that are missing; return all runs."""
    photos = opened_photos()
    torch.use_deterministic_algorithms(True)
    for seed in seeds:
        for fold in folds:
            if any((line["fold"], line["seed"]) == (fold, seed) for line in _runs()) and _kept(fold, seed).exists():
                continue
            line = made(photos, fold, seed)
            print(line, flush=True)
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
    write_table(photos, _runs())
    return _runs()


def _runs() -> list[dict]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def gains(photos: Photos, lines: Sequence[dict], way: str) -> dict[str, Difference]:
    """Return the gains over beam search on the test photos of all runs together, with their paired intervals."""
    both: dict[str, list[Statistics]] = {way: [], BASE: []}
    for line in lines:
        texts = json.loads(_kept(line["fold"], line["seed"]).read_text())
        for name, parts in both.items():
            parts.append(_statistics(photos, line["fold"], texts[name]))
    return differences(_together(both[BASE]), _together(both[way]))


def _together(parts: Sequence[Statistics]) -> Statistics:
    names = parts[0].contributions
    return Statistics({name: np.concatenate([part.contributions[name] for part in parts]) for name in names})


def write_table(photos: Photos, lines: Sequence[dict]) -> None:
    """Write the means over the runs."""
    rows = []
    for way in WAYS:
        means = {key: _mean(lines, way, key) for key in ("CIDEr-D", "BLEU-4", "copied", "seconds")}
        gain = ["", ""]
        if way not in (BASE, TIMED):  # the first row's gain is what repeated pairs cost
            found = gains(photos, lines, way)
            gain = [f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in (found["CIDEr-D"], found["BLEU-4"])]
        seconds = f"{means['seconds'] * 1000:.0f}"
        shown = f"**{means['CIDEr-D']:.3f}** | {gain[0]} | {means['BLEU-4']:.3f} | {gain[1]}"
        cost = means["seconds"] / _mean(lines, TIMED, "seconds")
        rows.append(f"| {way} | {shown} | {means['copied']:.3f} | {seconds} | {cost:.2f} |")
    studied = [
        f"| {name} | {statistics.fmean(line['validation'][name] for line in lines):.3f} |"
        for name in lines[0]["validation"]
    ]
    made_of = ", ".join(f"seed {s}: {sorted(x['fold'] for x in lines if x['seed'] == s)}" for s in _seeds(lines))
    missing = FOLDS * SEEDS - len(lines)
    rest = f" Not run: {missing} of the {FOLDS * SEEDS} runs of {FOLDS} folds and {SEEDS} seeds." if missing else ""
    TABLE.write_text(
        _TEXT.format(
            rows="\n".join(rows),
            study="\n".join(studied),
            name=NAME,
            runs=made_of,
            rest=rest,
            studied=STUDIED,
            **CANDIDATES,
        )
    )


def _seeds(lines: Sequence[dict]) -> list[int]:
    return sorted({line["seed"] for line in lines})


def _mean(lines: Sequence[dict], way: str, key: str) -> float:
    return statistics.fmean(line["ways"][way][key] for line in lines)


_TEXT = """# How to choose a caption, on 500 photographs

`{name}` on the folds of [architectures.md](architectures.md): about 350 training photos with five captions each, and
100 test photos a fold. `mbr`, `consensus` and `both` choose among the beams (`evaluate.generation.beams`) and samples
(`evaluate.decoding.samples`, temperature {temperature}), with the {neighbours} nearest training photos. No two words in
a row occur twice in a caption (`no_repeat_ngram_size: 2`), except in the first row. Gains are over beam 3 on the test
photos of all runs together, with paired 95 % intervals. *Copied*: share of captions that equal a training caption.
Milliseconds are CPU time of one thread per photo, from the resized picture to the caption, on a loaded machine; *cost*
is in units of beam 4.

Runs (folds): {runs}.{rest}

| | CIDEr-D | gain | BLEU-4 | gain | copied | ms | cost |
|---|---|---|---|---|---|---|---|
{rows}

On the validation photos, by the number of neighbours, with {studied}. There are about 50 a fold, and they chose the
epoch: read the direction only.

| | CIDEr-D |
|---|---|
{study}
"""


def figures() -> list[Figure]:
    """Make all runs, and compare the best way with beam search."""
    lines = make(range(FOLDS), range(SEEDS))
    way = BEST

    def figure(text: str, key: str, other: str, goal: float, better: str) -> Figure:
        a, b = _mean(lines, way, key), _mean(lines, other, key)
        names = (f"{way}: {a:.3f}", f"{other}: {b:.3f}")
        return Figure(text, round(a / b, 3), "x", goal, better, len(lines), *names)

    return [
        figure(f"test CIDEr-D of captions chosen by {way}, 500 photographs", "CIDEr-D", BASE, GAIN, "higher"),
        figure(f"captions that equal a training caption, by {way}", "copied", BASE, COPIES, "lower"),
        figure(f"seconds a picture by {way}", "seconds", TIMED, COST, "lower"),
    ]


def main() -> None:
    """Command line: some of the runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description="Make some of the runs.")
    parser.add_argument("--folds", type=int, nargs="*", default=range(FOLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=range(SEEDS))
    options = parser.parse_args()
    make(options.folds, options.seeds)


if __name__ == "__main__":
    main()
