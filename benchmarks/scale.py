"""Growth with the number of pictures: near-duplicates of up to 10 million pictures (8 GiB of memory).

CPU seconds of one thread, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

from benchmarks import Figure, UnavailableError
from pipeline.data.near_duplicates import Fingerprints
from pipeline.data.split import duplicates_across_splits

SIZES = (100_000, 1_000_000, 10_000_000)
MAX_BITS = 4  # as in params.yaml
MEMORY_GIB = 10
ROOT = Path(__file__).resolve().parents[1]


def figures() -> list[Figure]:
    """Measure time, memory and planted pairs found, each size in a process of its own."""
    free = psutil.virtual_memory().available / 2**30
    if free < MEMORY_GIB:
        raise UnavailableError(f"needs {MEMORY_GIB} GiB of free memory, found {free:.1f}")
    measured = {size: _measured_apart(size) for size in SIZES}
    found = [_growth(measured, small, large) for small, large in pairwise(SIZES)]
    largest = measured[SIZES[-1]]
    found.append(
        Figure(
            figure=f"near-duplicates of {SIZES[-1]:,} pictures: memory of the process",
            value=round(largest["peak_gib"], 2),
            unit="GiB",
            goal=8,
            better="lower",
            runs=1,
            a=f"ours: {largest['peak_gib']:.2f} GiB",
            b=f"the fingerprints themselves: {largest['input_gib']:.2f} GiB",
        )
    )
    pairs, planted = (sum(one[key] for one in measured.values()) for key in ("found", "planted"))
    found.append(
        Figure(
            figure="near-duplicates: planted pairs at 0 to 4 of 64 bits that are found",
            value=pairs / planted,
            unit="of all",
            goal=1,
            better="higher",
            runs=1,
            a=f"found: {pairs:,.0f}",
            b=f"planted: {planted:,.0f}",
        )
    )
    return found


def _growth(measured: dict[int, dict[str, float]], small: int, large: int) -> Figure:
    first, second = measured[small]["cpu_seconds"], measured[large]["cpu_seconds"]
    return Figure(
        figure=f"near-duplicates: cost of a picture at {large:,}, beside that at {small:,}",
        value=round(second / large / (first / small), 3),
        unit="x",
        goal=2,
        better="lower",
        runs=1,
        a=f"{large:,}: {second:.1f} CPU s",
        b=f"{small:,}: {first:.2f} CPU s",
    )


def _measured_apart(size: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.scale", str(size)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _measured(size: int) -> dict[str, float]:
    """Find the near-duplicates across splits of 80, 10 and 10 %; 1 % of the test pictures have one in train."""
    rng = np.random.default_rng(0)
    prints = Fingerprints(
        rng.integers(2**64, size=size, dtype=np.uint64), rng.integers(256, size=(size, 192), dtype=np.uint8)
    )
    tenth = size // 10
    splits = ["test"] * tenth + ["validation"] * tenth + ["train"] * (size - 2 * tenth)
    planted = tenth // 100
    test, train = np.arange(planted), size - 1 - np.arange(planted)
    prints.hashes[train] = prints.hashes[test] ^ _flips(rng, np.arange(planted) % (MAX_BITS + 1))
    # As after another JPEG compression.
    noise = rng.integers(-10, 11, size=(planted, 192))
    prints.thumbnails[train] = np.clip(prints.thumbnails[test] + noise, 0, 255).astype(np.uint8)
    start, cpu = time.perf_counter(), time.process_time()
    left_out = duplicates_across_splits(prints, splits, MAX_BITS)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "input_gib": (prints.hashes.nbytes + prints.thumbnails.nbytes) / 2**30,
        "planted": planted,
        "found": sum(left_out.get(i) == j for i, j in zip(train.tolist(), test.tolist(), strict=True)),
    }


def _flips(rng: np.random.Generator, bits: np.ndarray) -> np.ndarray:
    """Return masks with so many bits set, at random places, `(bits,)` uint64."""
    places = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (len(bits), 1)), axis=1)[:, :MAX_BITS]
    chosen = np.arange(MAX_BITS) < bits[:, None]
    masks: np.ndarray = np.bitwise_or.reduce(np.where(chosen, np.uint64(1) << places, np.uint64(0)), axis=1)
    return masks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one size, and print the figures as JSON.")
    parser.add_argument("size", type=int)
    print(json.dumps(_measured(parser.parse_args().size)))
