"""Caption all pictures of a folder or a zip into one output; a run that was killed is continued.

Threads read and decode pictures ahead of the model, which captions them in batches.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.audit import FILE_REASONS
from pipeline.data.images import SUFFIXES, PictureError, identity, opened
from pipeline.data.sources.archive import Files, Member, MemberError, open_files, open_zip
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks
from pipeline.runtime.progress import progress_bar
from pipeline.serving.bulk_outputs import Line, Output, open_output

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


class _UnreadableError(Exception):
    """A picture can't be captioned; the message says which and why."""


def caption_all(
    params: Params,
    source: Path,
    out: Path,
    load: Callable[[], NamedCaptioner],
    several: int = 1,
    seed: int = 0,
    diverse: bool = False,
) -> str:
    """Caption all pictures of `source` that have no caption in `out`, and return what was made.

    Args:
        params: all of params.yaml.
        source: a folder, whose zips are read too, or a zip.
        out: a `.jsonl` or `.parquet` file, or a folder for text files.
        load: loads the model; it is called only if there is something to caption.
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
                wanted = ((name, names[name]) for name in waiting)
                options = _Sampling(several, seed, diverse)
                captioned = _caption(params, files, wanted, len(waiting), output, load(), options, problems)
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


def _caption(
    params: Params,
    files: Files,
    wanted: Iterator[tuple[str, int]],
    total: int,
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

    with ThreadPoolExecutor(threads) as pool, progress_bar(total=total, desc="caption", unit=" pictures") as bar:
        jobs = (
            pool.submit(_read, files, index, name, captioner, params.ingest.max_pixels, budget)
            for name, index in wanted
        )
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
        except _UnreadableError as error:
            problems.append(str(error))
            skipped(1)


def _read(files: Files, index: int, name: str, captioner: Captioner, max_pixels: int, budget: MemoryBudget) -> _Picture:
    """Return a picture at the size of the model's input, decoded under the memory budget.

    Raises:
        _UnreadableError: it can't be read or decoded.
    """
    try:
        data = files.read(index, _MAX_BYTES)
        with opened(data, max_pixels, budget, at_least=2 * captioner.image_size) as picture:
            prepared = captioner.prepare(picture.decode())
    except MemberError as error:
        raise _UnreadableError(f"{name}: {FILE_REASONS[error.reason]}") from None
    except PictureError as error:
        raise _UnreadableError(f"{name}: {error}") from None
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


def _print(problems: list[str]) -> None:
    for problem in problems[:_PROBLEMS]:
        print(f"caption: {problem}; skipped", file=sys.stderr)
    if len(problems) > _PROBLEMS:
        print(f"caption: {len(problems) - _PROBLEMS} more pictures skipped", file=sys.stderr)
