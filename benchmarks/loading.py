"""Pictures a second that reach a training step from a slow disk, beside torch's `DataLoader`.

Each picture takes 20 ms to read, as from a network disk, and a step on eight pictures takes 40 ms, as on a GPU: both
are waits. Decoding and resizing are real.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks import Figure
from benchmarks._workspace import ROOT
from pipeline.data.dataset import Example, PictureReader, PictureWriter
from pipeline.models import factory
from pipeline.synthetic.sample import write_sample
from pipeline.training.loader import Pictures, batches, groups_of

PICTURES, BATCH = 240, 8
READ, STEP = 0.020, 0.040  # seconds
WORKERS = (0, 1, 2)


class SlowReader(PictureReader):
    """A reader that waits before each picture."""

    def read(self, file_name: str) -> bytes:
        """Return the bytes of a picture after a while."""
        time.sleep(READ)
        return super().read(file_name)


def rate(steps: Iterable[object]) -> float:
    """Return the pictures a second of an epoch."""
    start = time.perf_counter()
    for _ in steps:
        time.sleep(STEP)
    return PICTURES / (time.perf_counter() - start)


def figures() -> list[Figure]:
    """One figure: ours over a loader without workers, with the rates of one and two workers beside it."""
    checkpoint = factory.load(ROOT / "models/git-demo")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        examples = _write(folder)
        order = torch.randperm(PICTURES, generator=torch.Generator().manual_seed(0)).tolist()

        def pictures() -> Pictures:
            return Pictures(examples, SlowReader(folder), checkpoint, memory=0)

        groups = groups_of([(index, [[1, 2]]) for index in order], BATCH)
        theirs = {
            workers: rate(DataLoader(pictures(), batch_sampler=groups_of(order, BATCH), num_workers=workers))
            for workers in WORKERS
        }
        mine = rate(batches(checkpoint, pictures(), groups))
    return [
        Figure(
            figure=f"pictures a second of a training epoch from a disk with {READ * 1000:.0f} ms a picture",
            value=round(mine / theirs[0], 3),
            unit="x",
            goal=2.0,
            better="higher",
            runs=1,
            a=f"ours: {mine:.0f}",
            b=", ".join(f"DataLoader with {workers} workers: {found:.0f}" for workers, found in theirs.items()),
        )
    ]


def _write(folder: Path) -> list[Example]:
    """Write a split of pictures of the sample."""
    write_sample(folder / "sample", PICTURES + 5)
    with zipfile.ZipFile(folder / "sample/images.zip") as archive, PictureWriter(folder) as writer:
        names = [name for name in archive.namelist() if name.startswith("scene-0")][:PICTURES]
        for name in names:
            writer.add(name, archive.read(name))
    return [Example(name, ["x"], "", [], []) for name in names]
