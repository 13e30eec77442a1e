"""Caption all pictures of a folder, a zip or a bucket into one output; a run that was killed is continued.

Threads read and decode pictures ahead of the model, which captions them in batches. With Ray, workers do both. The
batches are the same, and so is the output.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.engine.base import Read
from pipeline.engine.choice import open_engine
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.runtime.progress import progress_bar
from pipeline.serving.bulk_outputs import open_output
from pipeline.serving.bulk_record import Line, Output
from pipeline.serving.bulk_sidecars import Sidecars
from pipeline.serving.bulk_sources import Source, UnreadableError, open_source
from pipeline.serving.bulk_work import Captioned, Captioning, NamedModel, Prepared, Way, caption, prepare

_MAX_BYTES = 2**26  # of one file; every decoding thread holds one
_PROBLEMS = 20  # that are printed one by one

_Found = tuple[str, Captioned | str]  # file name, and its captions or why it can't be captioned


def caption_all(
    params: Params,
    source: Path | str,
    out: Path,
    find: Callable[[], NamedModel],
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
        find: finds the model; it is called only if there is something to caption.
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
                way = Way(params.evaluate.beams, several, seed, diverse, params.ingest.max_pixels)
                model = find()
                captions = _captions(params, pictures, waiting, model, way)
                with closing(captions):
                    bar = progress_bar(captions, total=len(waiting), desc="caption", unit=" pictures")
                    captioned = _write(bar, params.runtime.caption_batch_size, output, model.uri, problems)
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


def _captions(params: Params, source: Source, wanted: Sequence[str], model: NamedModel, way: Way) -> Generator[_Found]:
    """Yield the captions of pictures in order, a batch at a time."""
    if params.runtime.engine == "local":
        yield from _in_threads(params, source, wanted, model, way)
        return

    @contextmanager
    def read(name: str) -> Iterator[Read[tuple[str, str]]]:
        data = _bytes(source, name)
        yield Read((name, data), None) if isinstance(data, str) else Read((name, ""), data)

    work = Captioning(model.load, way, bytes_of(params.runtime.memory_gb))
    with open_engine(params.runtime) as engine:
        size = params.runtime.caption_batch_size
        for (name, problem), found in engine.map(read, work, wanted, batch=size, whole=True, needs_gpu=True):
            yield name, problem if found is None else found


def _in_threads(params: Params, source: Source, wanted: Sequence[str], model: NamedModel, way: Way) -> Iterator[_Found]:
    captioner, size = model.load(), params.runtime.caption_batch_size
    return_large_blocks()
    budget = MemoryBudget(bytes_of(params.runtime.memory_gb))

    def work(name: str) -> Prepared | str:
        data = _bytes(source, name)
        return data if isinstance(data, str) else prepare(captioner, data, way, budget)

    with ThreadPoolExecutor(params.runtime.decode_threads or (os.cpu_count() or 1) + 1) as pool:
        prepared = _ahead((pool.submit(work, name) for name in wanted), 2 * size)
        names = iter(wanted)
        while batch := list(islice(prepared, size)):
            yield from zip(islice(names, size), caption(captioner, batch, way), strict=True)


def _ahead(jobs: Iterator[Future[Prepared | str]], count: int) -> Iterator[Prepared | str]:
    """Yield the results of jobs in order, after having started up to `count` more."""
    waiting = deque(islice(jobs, count))
    try:
        while waiting:
            job = waiting.popleft()
            waiting.extend(islice(jobs, 1))
            yield job.result()
    finally:
        for job in waiting:
            job.cancel()


def _bytes(source: Source, name: str) -> bytes | str:
    """Return a picture's bytes, or why it can't be read."""
    try:
        return source.read(name, _MAX_BYTES)
    except UnreadableError as error:
        return str(error)


def _write(found: Iterable[_Found], size: int, output: Output, uri: str, problems: list[str]) -> int:
    """Write captions in batches, append what can't be captioned to `problems`, and return how many were written."""
    written = 0
    found = iter(found)
    while batch := list(islice(found, size)):
        problems += [f"{name}: {one}" for name, one in batch if isinstance(one, str)]
        lines = [
            Line(name, one.sha256, one.captions, one.scores, uri) for name, one in batch if isinstance(one, Captioned)
        ]
        output.write(lines)
        written += len(lines)
    return written


def _print(problems: list[str], end: str) -> None:
    for problem in problems[:_PROBLEMS]:
        print(f"caption: {problem}; {end}", file=sys.stderr)
    if len(problems) > _PROBLEMS:
        print(f"caption: {len(problems) - _PROBLEMS} more; {end}", file=sys.stderr)
