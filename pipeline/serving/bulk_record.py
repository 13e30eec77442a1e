"""The record of bulk captioning: a line of JSON per picture, appended batch by batch. A kill loses at most one batch.

Every append is fsynced. A torn last line, which a kill leaves, is removed at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.config.errors import DataError, TemporaryError

NAME = "file_name"
_START = f'{{"{NAME}"'.encode()  # of every line that `append` writes


@dataclass(frozen=True)
class Line:
    """The captions of one picture.

    Attributes:
        file_name: path within the folder, or within a zip: `img/1.jpg`, `images.zip:img/1.jpg`.
        sha256: hash of the file.
        captions: the captions, the likeliest first.
        scores: the mean log-likelihood of each caption per token.
        model: `models:/NAME/VERSION`, or the checkpoint's folder.
    """

    file_name: str
    sha256: str
    captions: list[str]
    scores: list[float]
    model: str

    def record(self) -> dict[str, Any]:
        """Return the line as `image-captioning score` and Hugging Face's imagefolder read it."""
        first = {NAME: self.file_name, "caption": self.captions[0], "score": round(self.scores[0], 6)}
        several = {"captions": self.captions} if len(self.captions) > 1 else {}
        return {**first, **several, "model": self.model, "sha256": self.sha256}


class Output(ABC):
    """A place for captions.

    Attributes:
        captioned: file names of the pictures that an earlier run captioned.
        left_alone: file names of the pictures that have a text of someone else.
        refused: why the sidecar of a picture can't be read, by the picture's file name; such a sidecar stays as it is.
        path: what the user asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captioned: set[str] = set()
        self.left_alone: set[str] = set()
        self.refused: dict[str, str] = {}

    @abstractmethod
    def write(self, lines: Sequence[Line]) -> None:
        """Store the captions of a batch; they are on the disk when this returns."""

    def finish(self) -> None:  # noqa: B027  # only Parquet has something to do
        """Complete the output after the last batch."""


@contextlib.contextmanager
def journal(path: Path) -> Iterator[IO[bytes]]:
    """Open a JSON Lines file to append to, locked, without a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemporaryError(f"{path}: another run writes to it; wait for it to finish, then run again") from None
        _mend_end(file)
        yield file


def _mend_end(file: IO[bytes]) -> None:
    """Cut off a torn last line of ours; complete one that only lacks its line feed.

    What else has no line feed at its end is a file of someone else, which `read` refuses.
    """
    file.seek(0)
    start = size = 0
    last = b""
    for last in file:
        start, size = size, size + len(last)
    if not last or last.endswith(b"\n"):
        return
    try:
        found = json.loads(last)
    except ValueError:
        found = None
    if isinstance(found, dict) and NAME in found:
        file.write(b"\n")
    elif last.startswith(_START) or _START.startswith(last.strip(b"\0")):  # a power cut may leave zeros
        file.truncate(start)
    sync(file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal.

    Raises:
        DataError: a line is not an object with a file name.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict) or not isinstance(found.get(NAME), str):
                raise DataError(
                    f"{path}:{number}: is not a JSON object with a {NAME}; choose another --out, or remove that line"
                )
            yield found


def append(file: IO[bytes], lines: Sequence[Line]) -> None:
    """Append lines; they are on the disk when this returns."""
    file.write(b"".join(f"{json.dumps(line.record(), ensure_ascii=False)}\n".encode() for line in lines))
    sync(file)


def sync(file: IO[bytes]) -> None:
    """Write what is buffered to the disk."""
    file.flush()
    os.fsync(file.fileno())
