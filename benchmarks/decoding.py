"""How to choose a caption: beam search beside minimum Bayes risk and consensus, on the folds of `architectures`.

A model is trained for each fold and seed, and captions the fold's test photos in each way. The index holds the training
photos of the fold. Seconds are those of one thread from the resized picture to the caption, encoding included. A run is
a line of `benchmarks/results/decoding.jsonl`; its candidates are kept in `.work/benchmarks`. With them other choices
among the same candidates take seconds.

`python -m benchmarks.decoding --folds 0 1 --seeds 0` makes some runs, `python -m benchmarks decoding` makes all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks import Figure
from benchmarks.architectures import FOLDS, KEPT, RESULTS, SEEDS, Photos, best_checkpoint, opened_photos
from pipeline.config.sections.evaluate import DecodingSettings
from pipeline.evaluation.bootstrap import Difference, differences
from pipeline.evaluation.consensus import Candidates, ranked
from pipeline.evaluation.diversity import copied_share
from pipeline.evaluation.metrics.scoring import Statistics
from pipeline.evaluation.metrics.scoring import statistics as statistics_of
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models.captioner import PLAIN, Captioner, pooled
from pipeline.models.neighbours import Neighbours

RUNS, TABLE = RESULTS / "decoding.jsonl", RESULTS / "decoding.md"
NAME = "cnn-attention"
# Beam width, and how many words in a row may not occur twice in a caption (0: all may).
SEARCHES = {"beam 3, pairs twice": (3, 0), "beam 3": (3, 2), "beam 4": (4, 2), "beam 10": (10, 2)}
POOLS = {"3 beams, 30 samples": (3, 30), "10 beams": (10, 0), "20 beams": (20, 0)}  # the candidates
METHODS = ("mbr", "consensus", "both")
LIKELIHOODS = (0.0, 1.0)
CHOICES = {  # name -> candidates, method, likelihood
    f"{method} of {pool}" + (f", likelihood {likelihood:g}" if likelihood else ""): (pool, method, likelihood)
    for pool, method, likelihood in product(POOLS, METHODS, LIKELIHOODS)
}
WAYS = (*SEARCHES, *CHOICES)
BASE, TIMED, BEST = "beam 3", "beam 4", "both of 20 beams"
SETTINGS = {"temperature": 0.7, "neighbours": 60, "seed": 0}
# Tried on the validation photos: the candidates, the numbers of neighbours, and how much the likelihood counts
STUDIED, NEIGHBOURS, STUDIED_LIKELIHOODS = "20 beams", (10, 30, 60, 100), (0.0, 0.5, 1.0, 2.0)
GAIN, COPIES, COST = 1.1, 1.2, 4.0  # the goals


def made(photos: Photos, fold: int, seed: int) -> None:
    """Train a model on one fold; keep the captions by beam search, the candidates, and the seconds that they took."""
    best, training = best_checkpoint(photos, NAME, fold, seed)
    _, validation, test = photos.fold(fold)
    captioner, index = Captioner(best), _index(photos, fold)
    pixels = photos.pixels(best)
    texts: dict[str, list[str]] = {}
    candidates: dict[str, list[dict]] = {}
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
        captioner.choose_by(_choosing(samples), index)
        start = time.process_time()
        found = [one for part in parts for one in captioner.candidates(part, beams)]
        seconds[pool] = time.process_time() - start
        candidates[pool] = _plain(found)
    beams, samples = POOLS[STUDIED]
    captioner.choose_by(_choosing(samples), index)
    studied = captioner.candidates(list(pixels[torch.tensor(validation)]), beams)
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {
        "validation CIDEr-D": training.validation_cider,
        "seconds": seconds,
        "texts": texts,
        "candidates": candidates,
        "validation": _plain(studied),
    }
    _kept(fold, seed).write_text(json.dumps(kept))


def chosen(photos: Photos, fold: int, seed: int) -> tuple[dict[str, object], dict[str, list[str]]]:
    """Choose among the kept candidates; return the line of the run, and the captions of each way."""
    kept = json.loads(_kept(fold, seed).read_text())
    _, validation, test = photos.fold(fold)
    index = _index(photos, fold)
    known = [ptb_tokenize(caption) for several in index.captions for caption in several]
    texts, seconds = dict(kept["texts"]), dict(kept["seconds"])
    assert index.utility  # made once, before the clock starts
    for way, (pool, method, likelihood) in CHOICES.items():
        found = _with_neighbours(photos, index, test, kept["candidates"][pool], SETTINGS["neighbours"])
        start = time.process_time()
        texts[way] = [ranked(index.utility, method, one, likelihood)[0] for one in found]
        choosing = kept["seconds"].setdefault(way, time.process_time() - start)  # measured once
        seconds[way] = kept["seconds"][pool] + choosing
    _kept(fold, seed).write_text(json.dumps(kept))
    ways = {}
    for way in WAYS:
        scores = _statistics(photos, test, texts[way]).scores()
        copied = copied_share([ptb_tokenize(text) for text in texts[way]], known)
        ways[way] = {
            **{name: round(scores[name], 4) for name in ("CIDEr-D", "BLEU-4")},
            "copied": round(copied, 4),
            "seconds": round(seconds[way] / len(test), 4),
        }
    tried = {"greedy search, after the epoch": round(kept["validation CIDEr-D"], 4)}
    for method, count, likelihood in product(("consensus", "both"), NEIGHBOURS, STUDIED_LIKELIHOODS):
        found = _with_neighbours(photos, index, validation, kept["validation"], count)
        best = [ranked(index.utility, method, one, likelihood)[0] for one in found]
        name = f"{method}, {count} neighbours, likelihood {likelihood:g}"
        tried[name] = round(_statistics(photos, validation, best).scores()["CIDEr-D"], 4)
    return {"name": NAME, "fold": fold, "seed": seed, "ways": ways, "validation": tried}, texts


def _choosing(samples: int) -> DecodingSettings:
    return DecodingSettings(method="both", samples=samples, likelihood=1, **SETTINGS)  # type: ignore[arg-type]


def _index(photos: Photos, fold: int) -> Neighbours:
    """Return the index of the training photos; the image encoder is frozen, so its features serve all runs."""
    train = photos.fold(fold)[0]
    examples = [photos.examples[i] for i in train]
    features = pooled(photos.features()[train]).astype(np.float16)
    return Neighbours(features, [e.captions for e in examples], [e.sha256 for e in examples], {})


def _with_neighbours(
    photos: Photos, index: Neighbours, pictures: Sequence[int], kept: Sequence[dict], count: int
) -> list[Candidates]:
    near = index.captions_near(pooled(photos.features()[torch.tensor(pictures)]), count)
    return [
        Candidates(one["texts"], np.array(one["log_probabilities"]), *written)
        for one, written in zip(kept, near, strict=True)
    ]


def _plain(found: Sequence[Candidates]) -> list[dict]:
    return [{"texts": one.texts, "log_probabilities": one.log_probabilities.tolist()} for one in found]


def _kept(fold: int, seed: int) -> Path:
    return KEPT / f"candidates-{fold}-{seed}.json"


def _statistics(photos: Photos, pictures: Sequence[int], texts: Sequence[str]) -> Statistics:
    references = [[ptb_tokenize(c) for c in photos.examples[i].captions] for i in pictures]
    return statistics_of([ptb_tokenize(text) for text in texts], references)


def make(folds: Sequence[int], seeds: Sequence[int]) -> None:
    """Make the candidates that are missing."""
    photos = opened_photos()
    torch.use_deterministic_algorithms(True)
    for seed, fold in product(seeds, folds):
        if not _kept(fold, seed).exists():
            made(photos, fold, seed)
            print(f"fold {fold}, seed {seed}: made", flush=True)


def choose() -> list[dict]:
    """Choose among all candidates that there are; write the lines and the table, and return the lines.

    Nothing is written if that would lose runs.
    """
    photos = opened_photos()
    lines, texts = [], []
    for seed, fold in product(range(SEEDS), range(FOLDS)):
        if _kept(fold, seed).exists():
            line, captions = chosen(photos, fold, seed)
            lines.append(line)
            texts.append(captions)
    before = len(RUNS.read_text().splitlines()) if RUNS.exists() else 0
    if not lines or len(lines) < before:
        print(f"{TABLE.name} stays: it has {before} runs, and {KEPT} the candidates of {len(lines)}", flush=True)
        return lines
    RUNS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_table(photos, lines, texts)
    return lines


def gains(
    photos: Photos, lines: Sequence[dict], texts: Sequence[dict[str, list[str]]], way: str
) -> dict[str, Difference]:
    """Return the gains over beam search on the test photos of all runs together, with their paired intervals."""
    both: dict[str, list[Statistics]] = {way: [], BASE: []}
    for line, captions in zip(lines, texts, strict=True):
        for name, parts in both.items():
            parts.append(_statistics(photos, photos.fold(line["fold"])[2], captions[name]))
    return differences(_together(both[BASE]), _together(both[way]))


def _together(parts: Sequence[Statistics]) -> Statistics:
    names = parts[0].contributions
    return Statistics({name: np.concatenate([part.contributions[name] for part in parts]) for name in names})


def write_table(photos: Photos, lines: Sequence[dict], texts: Sequence[dict[str, list[str]]]) -> None:
    """Write the means over the runs."""
    rows = []
    for way in WAYS:
        means = {key: _mean(lines, way, key) for key in ("CIDEr-D", "BLEU-4", "copied", "seconds")}
        gain = ["", ""]
        if way not in (BASE, TIMED):  # the first row's gain is what repeated pairs cost
            found = gains(photos, lines, texts, way)
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
            **SETTINGS,
        )
    )


def _seeds(lines: Sequence[dict]) -> list[int]:
    return sorted({line["seed"] for line in lines})


def _mean(lines: Sequence[dict], way: str, key: str) -> float:
    return statistics.fmean(line["ways"][way][key] for line in lines)


_TEXT = """# How to choose a caption, on 500 photographs

`{name}` on the folds of [architectures.md](architectures.md): about 350 training photos with five captions each, and
100 test photos a fold. `mbr`, `consensus` and `both` choose among the beams (`evaluate.generation.beams`) and samples
(`evaluate.decoding.samples`, temperature {temperature}), with the {neighbours} nearest training photos. *Likelihood 1*
adds the mean log-probability per token to the agreement (`evaluate.decoding.likelihood`). No two words in a row occur
twice in a caption (`no_repeat_ngram_size: 2`), except in the first row. Gains are over beam 3 on the test photos of all
runs together, with paired 95 % intervals. *Copied*: share of captions that equal a training caption.
Milliseconds are CPU time of one thread per photo, from the resized picture to the caption, on a loaded machine; *cost*
is in units of beam 4. All rows with candidates include the time for their log-probabilities, which only those with
likelihood 1 need.

Runs (folds): {runs}.{rest}

| | CIDEr-D | gain | BLEU-4 | gain | copied | ms | cost |
|---|---|---|---|---|---|---|---|
{rows}

On the validation photos, with {studied}. There are about 50 a fold, and they chose the epoch: read the direction only.

| | CIDEr-D |
|---|---|
{study}
"""


def figures() -> list[Figure]:
    """Make all runs, and compare the best way with beam search."""
    make(range(FOLDS), range(SEEDS))
    lines = choose()
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
    choose()


if __name__ == "__main__":
    main()
