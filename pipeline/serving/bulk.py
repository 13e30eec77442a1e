"""Caption all pictures of a folder or a zip into one output; a run that was killed is continued.

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
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice
from pathlib import Path

from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.audit import FILE_REASONS
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files, Member, MemberError, open_files, open_zip
from pipeline.engine.base import Read
from pipeline.engine.choice import open_engine
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.runtime.progress import progress_bar
from pipeline.serving.bulk_outputs import Line, Output, open_output
from pipeline.serving.bulk_work import Captioned, Captioning, NamedModel, Prepared, Way, caption, prepare

_MAX_BYTES = 2**26  # of one file; every decoding thread holds one
_PROBLEMS = 20  # that are printed one by one

_Found = tuple[str, Captioned | str]  # file name, and its captions or why it can't be captioned


def caption_all(
    params: Params,
    source: Path,
    out: Path,
    find: Callable[[], NamedModel],
    several: int = 1,
    seed: int = 0,
    diverse: bool = False,
) -> str:
    """Caption all pictures of `source` that have no caption in `out`, and return what was made.

    Args:
        params: all of params.yaml.
        source: a folder, whose zips are read too, or a zip.
        out: a `.jsonl` or `.parquet` file, or a folder for text files.
        find: finds the model; it is called only if there is something to caption.
        several: the maximum number of different captions per picture.
        seed: random seed of the sampling if `several` is more than 1.
        diverse: whether several captions share few words.

    Raises:
        ConfigError: `source` or `out` is of another kind.
        DataError: there is no picture in `source`, or none can be read, or `out` has other content.
        TemporaryError: another run writes to `out`.
    """
    with _open(source) as files:
        pictures = [(index, member) for index, member in enumerate(files.members) if _is_picture(member)]
        names = {member.place: index for index, member in pictures if not member.refused}
        problems = [f"{member.place}: {FILE_REASONS[member.refused]}" for _, member in pictures if member.refused]
        if not pictures:
            raise DataError(
                f"{source}: has no JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture; name another folder or zip"
            )
        with open_output(out, list(names)) as output:
            waiting = [name for name in names if name not in output.captioned and name not in output.left_alone]
            before, left_alone = len(names.keys() & output.captioned), len(names.keys() & output.left_alone)
            start = time.monotonic()
            captioned = 0
            if waiting:
                way = Way(params.evaluate.beams, several, seed, diverse, params.ingest.max_pixels)
                model = find()
                found = _captions(params, files, [(name, names[name]) for name in waiting], model, way)
                with closing(found):
                    bar = progress_bar(found, total=len(waiting), desc="caption", unit=" pictures")
                    captioned = _write(bar, params.runtime.caption_batch_size, output, model.uri, problems)
            output.finish()
            left_alone = max(left_alone, len(names.keys() & output.left_alone))
    _print(problems)
    if not captioned and not before and not left_alone:
        raise DataError(f"{source}: none of its {len(pictures)} pictures can be read")
    rate = captioned / max(time.monotonic() - start, 1e-9)
    parts = [f"{captioned} pictures captioned ({rate:.1f} pictures/s)" if captioned else "0 pictures captioned"]
    parts += [f"{before} captioned before"] if before else []
    parts += [f"{left_alone} with a text of someone else left alone"] if left_alone else []
    parts += [f"{len(problems)} not readable"] if problems else []
    return f"{', '.join(parts)}: {out}"


def _open(source: Path) -> AbstractContextManager[Files]:
    if source.is_dir():
        return open_files(source)
    if source.suffix.lower() == ".zip" and source.is_file():
        return open_zip(source)
    raise ConfigError(f"{source}: with --out, name one folder or .zip")


def _is_picture(member: Member) -> bool:
    return member.suffix in SUFFIXES and not member.base.startswith("._")  # macOS adds such files to zips


def _captions(
    params: Params, files: Files, wanted: Sequence[tuple[str, int]], model: NamedModel, way: Way
) -> Generator[_Found]:
    """Yield the captions of pictures in order, a batch at a time."""
    if params.runtime.engine == "local":
        yield from _in_threads(params, files, wanted, model, way)
        return

    @contextmanager
    def read(one: tuple[str, int]) -> Iterator[Read[tuple[str, str]]]:
        name, index = one
        data = _bytes(files, index)
        yield Read((name, data), None) if isinstance(data, str) else Read((name, ""), data)

    work = Captioning(model.load, way, bytes_of(params.runtime.memory_gb))
    with open_engine(params.runtime) as engine:
        size = params.runtime.caption_batch_size
        for (name, problem), found in engine.map(read, work, wanted, batch=size, whole=True, needs_gpu=True):
            yield name, problem if found is None else found


def _in_threads(
    params: Params, files: Files, wanted: Sequence[tuple[str, int]], model: NamedModel, way: Way
) -> Iterator[_Found]:
    captioner, size = model.load(), params.runtime.caption_batch_size
    return_large_blocks()
    budget = MemoryBudget(bytes_of(params.runtime.memory_gb))

    def work(index: int) -> Prepared | str:
        data = _bytes(files, index)
        return data if isinstance(data, str) else prepare(captioner, data, way, budget)

    with ThreadPoolExecutor(params.runtime.decode_threads or (os.cpu_count() or 1) + 1) as pool:
        prepared = _ahead((pool.submit(work, index) for _, index in wanted), 2 * size)
        names = (name for name, _ in wanted)
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


def _bytes(files: Files, index: int) -> bytes | str:
    """Return a file's bytes, or why it can't be read."""
    try:
        return files.read(index, _MAX_BYTES)
    except MemberError as error:
        return FILE_REASONS[error.reason]


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


def _print(problems: list[str]) -> None:
    for problem in problems[:_PROBLEMS]:
        print(f"caption: {problem}; skipped", file=sys.stderr)
    if len(problems) > _PROBLEMS:
        print(f"caption: {len(problems) - _PROBLEMS} more pictures skipped", file=sys.stderr)
