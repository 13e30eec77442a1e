"""Speed of ingest and build: against a notebook's unpack-and-resize loop, with new posts, and with many pictures.

The environment variable IMAGE_CAPTIONING_ARCHIVE may name a zip of 3,200 or more photos; without it, noise pictures of
an Instagram photo's size are generated. If the zip has 30,000 photos or more, memory and the cost per picture at full
size are measured too (15 minutes on two cores).
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import Figure, ratio, seconds
from benchmarks._workspace import set_params
from benchmarks.overhead import ENVIRONMENT, NEW, ROOT, command

ARCHIVE = "IMAGE_CAPTIONING_ARCHIVE"
FEW, SMALL, LARGE = 2_000, 3_000, 30_000
WEEK = 100  # new posts
RUNS = 3


def figures() -> list[Figure]:
    """Return the figures that the archive is large enough for."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as temporary:
        folder = Path(temporary)
        archive = Path(os.environ[ARCHIVE]) if ARCHIVE in os.environ else _noise(folder / "noise.zip", SMALL + 2 * WEEK)
        posts = _posts(archive)
        found = [_beside_the_notebook(archive, posts[:FEW], folder), *_a_week_later(archive, posts, folder)]
        if len(posts) >= LARGE:
            found += _full_size(archive, posts, folder)
        return found


def _posts(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return [name for name in file.namelist() if name.endswith(".jpg")]


def _part(archive: Path, posts: Sequence[str], out: Path) -> Path:
    """Write an archive with some of the posts, each with a caption."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([["image", "caption"], *([name, f"post {k}"] for k, name in enumerate(posts))])
    with zipfile.ZipFile(archive) as file, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as part:
        part.writestr("captions.csv", rows.getvalue())
        for name in posts:
            part.writestr(name, file.read(name))
    return out


def _noise(out: Path, posts: int) -> Path:
    """Write an archive of JPEGs of 1080 x 1350 pixels: coarse noise with a file size like a photo's."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for k in range(posts):
            cells = rng.integers(0, 256, (135, 108, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(cells).resize((1080, 1350), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
            file.writestr(f"img/insta{k}.jpg", buffer.getvalue())
    return out


def _workspace(folder: Path, sources: Sequence[str]) -> Path:
    """Create a copy of the repository with these sources in its params, but without their data."""
    folder.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for path in ("pipeline", "models/git-demo", "data/excluded"):
        shutil.copytree(ROOT / path, folder / path, ignore=ignore)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    _use(folder, sources)
    for words in NEW:
        command(folder, *words)()
    return folder


def _use(folder: Path, sources: Sequence[str]) -> None:
    set_params(folder, {"ingest.sources": list(sources)})


def _stages(folder: Path, *names: str) -> int:
    """Run stages without DVC; return the peak memory of the largest process, in KiB."""
    largest = 0
    for name in names:
        with subprocess.Popen(
            [sys.executable, "-m", *name.split()], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL
        ) as stage:
            _, status, usage = os.wait4(stage.pid, 0)
            stage.returncode = os.waitstatus_to_exitcode(status)
        assert stage.returncode == 0, f"{name} ended with {stage.returncode}"
        largest = max(largest, usage.ru_maxrss)
    return largest


def _beside_the_notebook(archive: Path, posts: Sequence[str], folder: Path) -> Figure:
    """Compare with unpacking and resizing pictures one at a time; ours also checks, hashes and writes them."""
    here = _workspace(folder / "few", ["a"])
    part = _part(archive, posts, here / "data/raw/a/a.zip")

    def notebook() -> None:
        code = (
            "import sys, zipfile, pathlib\nfrom PIL import Image\n"
            "zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])\n"
            "kept = []\n"
            "for path in sorted(pathlib.Path(sys.argv[2]).rglob('*.jpg')):\n"
            "    image = Image.open(path).convert('RGB')\n"
            "    scale = 256 / min(image.size)\n"
            "    kept.append(image.resize((round(image.width * scale), round(image.height * scale))))\n"
        )
        command(here, sys.executable, "-c", code, str(part), str(here / "unpacked"))()

    def ours() -> None:
        shutil.rmtree(here / "data" / "ingest", ignore_errors=True)
        _stages(here, "pipeline.ingest a", "pipeline.build")

    return ratio(
        f"ingest and build of {len(posts)} pictures of 1080 x 1350",
        ("unpacked, opened and reduced one at a time", notebook),
        ("ours", ours),
        goal=4,
        runs=RUNS,
        better="higher",
    )


def _a_week_later(archive: Path, posts: Sequence[str], folder: Path) -> list[Figure]:
    """Compare the first `dvc repro build` with one after 100 posts are added to the archive, and in a second source."""
    # Start-up time matters more for few pictures, so a full-size archive is measured at full size, once.
    count, runs = (len(posts) - 2 * WEEK, 1) if len(posts) >= LARGE else (SMALL, RUNS)
    before, after = posts[:count], posts[: count + WEEK]
    first, grown, beside = [], [], []
    for run in range(runs):
        here = _workspace(folder / f"week {run}", ["a"])
        _part(archive, before, here / "data/raw/a/a.zip")
        _add(here, "a")
        first.append(seconds(command(here, "dvc", "repro", "build")))
        _part(archive, after, here / "data/raw/a/a.zip")
        _add(here, "a")
        grown.append(seconds(command(here, "dvc", "repro", "build")))
        _part(archive, posts[-WEEK:], here / "data/raw/b/b.zip")
        _use(here, ["a", "b"])
        _add(here, "b")
        beside.append(seconds(command(here, "dvc", "repro", "build")))
        shutil.rmtree(here)
    return [
        Figure(
            figure=f"`dvc repro build` of {count:,} posts, {what}",
            value=round(statistics.median(first) / statistics.median(again), 3),
            unit="x",
            goal=10,
            better="higher",
            runs=runs,
            a=f"the first time: {statistics.median(first):.2f} s",
            b=f"a week later: {statistics.median(again):.2f} s",
        )
        for what, again in (
            (f"grown by {WEEK}", grown),
            (f"and a second source of {WEEK} beside them", beside),
        )
    ]


def _add(folder: Path, source: str) -> None:
    command(folder, "dvc", "add", "-q", f"data/raw/{source}")()


def _full_size(archive: Path, posts: Sequence[str], folder: Path) -> list[Figure]:
    """Measure peak memory, and the cost per picture against that of 3,000 pictures; once, because it takes long."""
    costs, memory = [], 0
    for name, chosen in (("small", posts[:SMALL]), ("full", posts)):
        here = _workspace(folder / f"size {name}", ["a"])
        _part(archive, chosen, here / "data/raw/a/a.zip")
        start = time.perf_counter()
        memory = max(memory, _stages(here, "pipeline.ingest a", "pipeline.build"))
        costs.append((time.perf_counter() - start) / len(chosen))
        shutil.rmtree(here)
    small, full = costs
    return [
        Figure(
            figure=f"cost of a picture at {len(posts):,}, beside that at {SMALL:,}",
            value=round(full / small, 3),
            unit="x",
            goal=1.15,
            better="lower",
            runs=1,
            a=f"{len(posts):,}: {full * 1e3:.2f} ms",
            b=f"{SMALL:,}: {small * 1e3:.2f} ms",
        ),
        Figure(
            figure=f"memory of the largest process, ingest and build of {len(posts):,} pictures",
            value=round(memory / 2**20, 3),
            unit="GiB",
            goal=1.5,
            better="lower",
            runs=1,
            a="ours",
            b="",
        ),
    ]
