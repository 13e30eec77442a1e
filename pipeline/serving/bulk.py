"""Caption all pictures of a folder, a zip or a bucket into one output; a run that was killed is continued.

Threads read and decode pictures ahead of the model, which captions them in batches.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.data.images import PictureError, identity, opened
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.runtime.progress import progress_bar
from pipeline.serving.bulk_outputs import open_output
from pipeline.serving.bulk_record import Line, Output
from pipeline.serving.bulk_sidecars import Sidecars
from pipeline.serving.bulk_sources import Source, UnreadableError, open_source

_MAX_BYTES = 2**26  # of one file; every decoding thread holds one
_PROBLEMS = 20  # that are printed one by one


@dataclass(frozen=True)
class NamedCaptioner:
    """A loaded captioner, and the name of its model for the output."""

    captioner: Captioner
    uri: str


@dataclass(frozen=True)
class _Sampling:
    """How pictures are captioned; see `Captioner.scored`."""

    several: int
    seed: int
    diverse: bool


@dataclass(frozen=True)
class _Picture:
    file_name: str
    sha256: str
    prepared: torch.Tensor


def caption_all(
    params: Params,
    source: Path | str,
    out: Path,
    load: Callable[[], NamedCaptioner],
    several: int = 1,
    seed: int = 0,
    diverse: bool = False,
    sidecars: Sidecars | None = None,
) -> str:
    """Caption all pictures of `source` that have no caption in `out`, and return what was made.

    Args:
        params: all of params.yaml.
        source: a folder, whose zips are read too, a zip, or `s3://BUCKET/PREFIX`.
        out: a `.jsonl` or `.parquet` file, or a folder for sidecars.
        load: loads the model; it is called only if there is something to caption.
        several: the maximum number of different captions per picture.
        seed: random seed of the sampling if `several` is more than 1.
        diverse: whether several captions share few words.
        sidecars: what is written per picture if `out` is a folder; None for text files.

    Raises:
        ConfigError: `source` or `out` is of another kind, or access to a bucket is denied.
        DataError: there is no picture in `source`, or none can be read, or `out` has other content.
        TemporaryError: another run writes to `out`, or the store with the bucket can't be reached.
    """
    with open_source(source) as pictures:
        names, problems = pictures.names, pictures.problems
        found = len(names) + len(problems)
        if not found:
            raise DataError(
                f"{source}: has no JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture; name another folder, zip or"
                " bucket"
            )
        with open_output(out, names, sidecars) as output:
            done = output.captioned | output.left_alone | output.refused.keys()
            waiting = [name for name in names if name not in done]
            before, left_alone = len(output.captioned.intersection(names)), len(output.left_alone.intersection(names))
            start = time.monotonic()
            captioned = 0
            if waiting:
                options = _Sampling(several, seed, diverse)
                captioned = _caption(params, pictures, waiting, output, load(), options, problems)
            output.finish()
            left_alone = max(left_alone, len(output.left_alone.intersection(names)))
    _print(problems, "skipped")
    _print(list(output.refused.values()), "left as it is")
    if not captioned and not before and not left_alone and not output.refused:
        raise DataError(f"{source}: none of its {found} pictures can be read")
    rate = captioned / max(time.monotonic() - start, 1e-9)
    parts = [f"{captioned} pictures captioned ({rate:.1f} pictures/s)" if captioned else "0 pictures captioned"]
    parts += [f"{before} captioned before"] if before else []
    parts += [f"{left_alone} with a text of someone else left alone"] if left_alone else []
    parts += [f"{len(output.refused)} sidecars not readable"] if output.refused else []
    parts += [f"{len(problems)} not readable"] if problems else []
    return f"{', '.join(parts)}: {out}"


def _caption(
    params: Params,
    source: Source,
    wanted: Sequence[str],
    output: Output,
    model: NamedCaptioner,
    options: _Sampling,
    problems: list[str],
) -> int:
    """Caption pictures in batches, append what can't be read to `problems`, and return how many were captioned."""
    captioner, size = model.captioner, params.runtime.caption_batch_size
    threads = params.runtime.decode_threads or (os.cpu_count() or 1) + 1
    return_large_blocks()
    budget = MemoryBudget(bytes_of(params.runtime.memory_gb))
    captioned = 0

    with ThreadPoolExecutor(threads) as pool, progress_bar(total=len(wanted), desc="caption", unit=" pictures") as bar:
        jobs = (pool.submit(_read, source, name, captioner, params.ingest.max_pixels, budget) for name in wanted)
        pictures = _readable(_ahead(jobs, 2 * size), problems, bar.update)
        while batch := list(islice(pictures, size)):
            output.write(_lines(batch, model, params.evaluate.beams, options))
            captioned += len(batch)
            bar.update(len(batch))
    return captioned


def _ahead(jobs: Iterator[Future[_Picture]], count: int) -> Iterator[Future[_Picture]]:
    """Yield jobs in order, after having started up to `count` more."""
    waiting = deque(islice(jobs, count))
    try:
        while waiting:
            yield waiting.popleft()
            waiting.extend(islice(jobs, 1))
    finally:
        for job in waiting:
            job.cancel()


def _readable(
    jobs: Iterable[Future[_Picture]], problems: list[str], skipped: Callable[[int], object]
) -> Iterator[_Picture]:
    for job in jobs:
        try:
            yield job.result()
        except UnreadableError as error:
            problems.append(str(error))
            skipped(1)


def _read(source: Source, name: str, captioner: Captioner, max_pixels: int, budget: MemoryBudget) -> _Picture:
    """Return a picture at the size of the model's input, decoded under the memory budget.

    Raises:
        UnreadableError: it can't be read or decoded.
        ConfigError, TemporaryError: see `Source.read`.
    """
    data = source.read(name, _MAX_BYTES)
    try:
        with opened(data, max_pixels, budget, at_least=2 * captioner.image_size) as picture:
            prepared = captioner.prepare(picture.decode())
    except PictureError as error:
        raise UnreadableError(f"{name}: {error}") from None
    return _Picture(name, identity(data), prepared)


def _lines(batch: Sequence[_Picture], model: NamedCaptioner, beams: int, options: _Sampling) -> list[Line]:
    scored = model.captioner.scored(
        [picture.prepared for picture in batch],
        [options.seed] * len(batch),
        count=options.several,
        beams=beams,
        sampling=options.several > 1,
        diverse=options.diverse,
    )
    return [
        Line(
            file_name=picture.file_name,
            sha256=picture.sha256,
            captions=[caption.text for caption in captions],
            scores=[caption.score for caption in captions],
            model=model.uri,
        )
        for picture, captions in zip(batch, scored, strict=True)
    ]


def _print(problems: list[str], end: str) -> None:
    for problem in problems[:_PROBLEMS]:
        print(f"caption: {problem}; {end}", file=sys.stderr)
    if len(problems) > _PROBLEMS:
        print(f"caption: {len(problems) - _PROBLEMS} more; {end}", file=sys.stderr)
