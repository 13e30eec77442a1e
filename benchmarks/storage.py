"""Speed of DVC and of random reads with pictures in a few zip shards, against a folder of small files.

20,000 files of 40 kB by default, which is the size that `ingest` writes; IMAGE_CAPTIONING_PICTURES sets another number.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import Figure, seconds
from benchmarks.overhead import NEW, command
from pipeline.data.dataset import PictureReader, PictureWriter

PICTURES = int(os.environ.get("IMAGE_CAPTIONING_PICTURES", "20000"))
SIZE = 40_000
READS = 2_000
STAGE = "stages:\n  use:\n    cmd: cp -r pictures used\n    deps: [pictures]\n    outs: [used]\n"


def figures() -> list[Figure]:
    """Measure `dvc add`, `dvc status`, `dvc repro` of a stage that copies the pictures, and random reads."""
    with tempfile.TemporaryDirectory() as temporary:
        files, shards = (_repository(Path(temporary) / name) for name in ("files", "shards"))
        noise = random.Random(0).randbytes(SIZE)
        names = [f"{k:08x}.jpg" for k in range(PICTURES)]
        (files / "pictures").mkdir()
        with PictureWriter(shards / "pictures") as writer:
            for k, name in enumerate(names):
                data = k.to_bytes(8, "big") + noise
                (files / "pictures" / name).write_bytes(data)
                writer.add(name, data)
        chosen = random.Random(1).sample(names, READS)
        reader = PictureReader(shards / "pictures")
        works: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            (f"`dvc {words}`", command(files, "dvc", *words.split()), command(shards, "dvc", *words.split()))
            for words in ("add -q pictures", "status", "repro -q")
        ]
        works.append(
            (
                f"{READS:,} random reads",
                lambda: [(files / "pictures" / name).read_bytes() for name in chosen],
                lambda: [reader.read(name) for name in chosen],
            )
        )
        # Once each, because DVC does not hash a file twice.
        return [_figure(what, seconds(a), seconds(b)) for what, a, b in works]


def _figure(what: str, files: float, shards: float) -> Figure:
    return Figure(
        figure=f"{what} of {PICTURES:,} pictures: a folder of files / our shards",
        value=round(files / shards, 3),
        unit="x",
        goal=1,
        better="higher",
        runs=1,
        a=f"files: {files:.2f} s",
        b=f"shards: {shards:.2f} s",
    )


def _repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "dvc.yaml").write_text(STAGE)
    for words in NEW:
        command(folder, *words)()
    return folder
