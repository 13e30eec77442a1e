"""Where bulk captions go: JSON Lines, Parquet, or a text file per picture. A kill loses at most the current batch.

All three append to a JSON Lines file and call fsync after each batch; a torn last line, which a kill leaves, is removed
at the next start. Parquet is written from it at the end, and text files beside it. Nothing that exists is overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.runtime.atomic_files import swapped_in

_NAME = "file_name"


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
        first = {_NAME: self.file_name, "caption": self.captions[0], "score": round(self.scores[0], 6)}
        several = {"captions": self.captions} if len(self.captions) > 1 else {}
        return {**first, **several, "model": self.model, "sha256": self.sha256}


class Output(ABC):
    """A place for captions.

    Attributes:
        captioned: file names of the pictures that an earlier run captioned.
        left_alone: file names of the pictures that have a text of someone else.
        path: what the user asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captioned: set[str] = set()
        self.left_alone: set[str] = set()

    @abstractmethod
    def write(self, lines: Sequence[Line]) -> None:
        """Store the captions of a batch; they are on the disk when this returns."""

    def finish(self) -> None:  # noqa: B027  # only Parquet has something to do
        """Complete the output after the last batch."""


@contextlib.contextmanager
def open_output(path: Path, names: Sequence[str]) -> Iterator[Output]:
    """Open an output for writing: a `.jsonl` or `.parquet` file, else a folder of text files.

    Args:
        path: the output.
        names: file names of all pictures, as in `Line`.

    Raises:
        ConfigError: the path is not one of these.
        DataError: an existing file is not what this module writes.
        TemporaryError: another run writes to it.
    """
    if path.suffix == ".jsonl":
        with _journal(path) as file:
            yield _JsonLines(path, file)
    elif path.suffix == ".parquet":
        beside = path.with_name(f".{path.name}.jsonl")
        with _journal(beside) as file:
            yield _Parquet(path, file, beside)
    elif path.is_dir() or not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        record = path / "captions.jsonl"
        with _journal(record) as file:
            yield _TextFiles(path, file, record, names)
    else:
        raise ConfigError(f"--out {path}: name a .jsonl or .parquet file, or a folder for .txt files")


@contextlib.contextmanager
def _journal(path: Path) -> Iterator[IO[bytes]]:
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
    """Cut off a torn last line; complete one that only lacks its line feed."""
    file.seek(0)
    start = size = 0
    last = b""
    for last in file:
        start, size = size, size + len(last)
    if not last or last.endswith(b"\n"):
        return
    try:
        whole = isinstance(json.loads(last), dict)
    except ValueError:
        whole = False
    if whole:
        file.write(b"\n")
    else:
        file.truncate(start)
    _sync(file)


def _read(path: Path) -> Iterator[dict[str, Any]]:
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
            if not isinstance(found, dict) or not isinstance(found.get(_NAME), str):
                raise DataError(
                    f"{path}:{number}: is not a JSON object with a {_NAME}; choose another --out, or remove that line"
                )
            yield found


def _append(file: IO[bytes], lines: Sequence[Line]) -> None:
    file.write(b"".join(f"{json.dumps(line.record(), ensure_ascii=False)}\n".encode() for line in lines))
    _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class _JsonLines(Output):
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path)
        self._file = file
        for line in _read(path):
            (self.captioned if "model" in line else self.left_alone).add(line[_NAME])

    def write(self, lines: Sequence[Line]) -> None:
        _append(self._file, lines)


class _Parquet(Output):
    """Rows are collected beside the Parquet file, which can't be appended to."""

    def __init__(self, path: Path, file: IO[bytes], beside: Path) -> None:
        super().__init__(path)
        self._file, self._beside = file, beside
        self._before = _read_parquet(path) if path.exists() else []
        for row in (*self._before, *_read(beside)):
            (self.captioned if row.get("model") else self.left_alone).add(row[_NAME])

    def write(self, lines: Sequence[Line]) -> None:
        _append(self._file, lines)

    def finish(self) -> None:
        import pyarrow
        from pyarrow import parquet

        there = {row[_NAME] for row in self._before}  # a kill may have come between the two files
        rows = [*self._before, *(line for line in _read(self._beside) if line[_NAME] not in there)]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with swapped_in(self.path) as (place,):
            parquet.write_table(pyarrow.table({key: [row.get(key) for row in rows] for key in columns}), place)
        self._beside.unlink()


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException:
        raise DataError(f"{path}: is not a Parquet file; choose another --out") from None
    if any(not isinstance(row.get(_NAME), str) for row in rows):
        raise DataError(f"{path}: has no column {_NAME} of text; choose another --out")
    return rows


class _TextFiles(Output):
    """A text file per picture, and `captions.jsonl`, which tells our texts from those of people."""

    def __init__(self, folder: Path, file: IO[bytes], record: Path, names: Sequence[str]) -> None:
        super().__init__(folder)
        self._file = file
        self._texts = _text_files(names)
        captions = {line[_NAME]: line.get("caption") for line in _read(record)}
        for name, text in self._texts.items():
            if name in captions:
                self.captioned.add(name)
                self._write_text(text, str(captions[name]))  # a kill may have come before the text file
            elif (folder / text).exists():
                self.left_alone.add(name)

    def write(self, lines: Sequence[Line]) -> None:
        _append(self._file, lines)
        for line in lines:
            if not self._write_text(self._texts[line.file_name], line.captions[0]):
                self.left_alone.add(line.file_name)

    def _write_text(self, text: str, caption: str) -> bool:
        """Write a text file whole, or not at all if it exists; return whether it was written."""
        target = self.path / text
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        place = target.with_name(f".{target.name}.partial")
        with place.open("wb") as file:
            file.write(f"{caption}\n".encode())
            _sync(file)
        try:
            os.link(place, target)  # fails if someone has written the text meanwhile; a rename would replace it
        except FileExistsError:
            return False
        finally:
            place.unlink()
        return True


def _text_files(names: Sequence[str]) -> Mapping[str, str]:
    """Return the path of each picture's text file.

    `img/1.jpg` gets `img/1.txt`, and `a.zip:img/1.jpg` gets `a/img/1.txt`. If two pictures would share a file, their
    suffixes stay: `img/1.jpg.txt`, `img/1.png.txt`.

    >>> dict(_text_files(["1.jpg", "2.jpg", "2.png", "a.zip:3.jpg"]))
    {'1.jpg': '1.txt', '2.jpg': '2.jpg.txt', '2.png': '2.png.txt', 'a.zip:3.jpg': 'a/3.txt'}
    """
    flat = {name: name.replace(".zip:", "/", 1) for name in names}
    count = Counter(path.rpartition(".")[0].lower() for path in flat.values())
    return {
        name: f"{path if count[path.rpartition('.')[0].lower()] > 1 else path.rpartition('.')[0]}.txt"
        for name, path in flat.items()
    }
