"""Bulk captioning of a zip, beside generation on pictures that are already decoded."""

from __future__ import annotations

import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from benchmarks import Figure
from benchmarks._checkpoints import GIT_DEMO
from benchmarks._workspace import workspace
from benchmarks.serving import scenes
from pipeline.config import params
from pipeline.data.images import decode
from pipeline.models.captioner import Captioner
from pipeline.runtime.openmp import wait_passively
from pipeline.serving.bulk import caption_all
from pipeline.serving.bulk_work import NamedModel

PICTURES = 256
ROUNDS = 5


def bulk(folder: Path) -> Figure:
    """Pictures/s of `image-captioning caption FOLDER --out` over generation alone."""
    captioner, given = Captioner.from_folder(GIT_DEMO), params.load(folder / "params.yaml")
    pictures = scenes(PICTURES)
    with zipfile.ZipFile(folder / "many.zip", "w") as archive:
        for number, data in enumerate(pictures):
            archive.writestr(f"{number}.jpg", data)
    prepared = [captioner.prepare(decode(data, 10**9)) for data in pictures]
    size, beams = given.runtime.caption_batch_size, given.evaluate.beams

    def generate() -> None:
        for first in range(0, PICTURES, size):
            batch: list[torch.Tensor] = prepared[first : first + size]
            captioner.scored(batch, [0] * len(batch), count=1, beams=beams, sampling=False)

    def command() -> None:
        out = folder / "captions.jsonl"
        out.unlink(missing_ok=True)
        caption_all(given, folder / "many.zip", out, lambda: NamedModel("models:/demo/1", lambda: captioner))

    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        generate()
        middle = time.perf_counter()
        command()
        times.append((middle - start, time.perf_counter() - middle))
    alone, whole = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return Figure(
        figure=f"pictures/s of bulk captioning over generation alone, git-demo, {PICTURES} pictures",
        value=round(alone / whole, 3),
        unit="x",
        goal=0.9,
        better="higher",
        runs=ROUNDS,
        a=f"bulk: {PICTURES / whole:.0f} pictures/s",
        b=f"generation: {PICTURES / alone:.0f} pictures/s",
    )


def figures() -> list[Figure]:
    """All figures."""
    wait_passively()  # as the commands do
    with tempfile.TemporaryDirectory() as temporary:
        return [bulk(workspace(Path(temporary), {}))]
