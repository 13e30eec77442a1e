"""Where bulk captions go: JSON Lines, Parquet, or a sidecar per picture. No caption that exists is overwritten.

All are written from a record that is appended to (`bulk_record`): Parquet at the end, sidecars after each batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.config.errors import ConfigError, DataError
from pipeline.runtime.atomic_files import swapped_in
from pipeline.serving.bulk_record import NAME, Line, Output, append, journal, read
from pipeline.serving.bulk_sidecars import Sidecars, TextFiles, XmpFiles


@contextlib.contextmanager
def open_output(path: Path, names: Sequence[str], sidecars: Sidecars | None = None) -> Iterator[Output]:
    """Open an output for writing: a `.jsonl` or `.parquet` file, else a folder of sidecars.

    Args:
        path: the output.
        names: file names of all pictures, as in `Line`.
        sidecars: what is written per picture into a folder; None for text files.

    Raises:
        ConfigError: the path has another suffix; it is a file, but `sidecars` asks for a folder; or the record in the
            folder is a link.
        DataError: an existing file is not what this module writes.
        TemporaryError: another run writes to it.
    """
    if sidecars and path.suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {path}: is a file; for --sidecars {sidecars} name a folder")
    if path.suffix == ".jsonl":
        with journal(path) as file:
            yield _JsonLines(path, file)
    elif path.suffix == ".parquet":
        beside = path.with_name(f".{path.name}.jsonl")
        with journal(beside) as file:
            yield _Parquet(path, file, beside)
    elif path.is_dir() or not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        record = path / "captions.jsonl"
        if record.is_symlink():  # the folder may have come with the pictures
            raise ConfigError(f"{record}: is a link, which could lead anywhere; remove it, or name another folder")
        with journal(record) as file:
            kind = XmpFiles if sidecars == Sidecars.xmp else TextFiles
            yield kind(path, file, record, names)
    else:
        raise ConfigError(f"--out {path}: name a .jsonl or .parquet file, or a folder for .txt or .xmp files")


class _JsonLines(Output):
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path)
        self._file = file
        for line in read(path):
            (self.captioned if "model" in line else self.left_alone).add(line[NAME])

    def write(self, lines: Sequence[Line]) -> None:
        append(self._file, lines)


class _Parquet(Output):
    """Rows are collected beside the Parquet file, which can't be appended to."""

    def __init__(self, path: Path, file: IO[bytes], beside: Path) -> None:
        super().__init__(path)
        self._file, self._beside = file, beside
        self._before = _read_parquet(path) if path.exists() else []
        for row in (*self._before, *read(beside)):
            (self.captioned if row.get("model") else self.left_alone).add(row[NAME])

    def write(self, lines: Sequence[Line]) -> None:
        append(self._file, lines)

    def finish(self) -> None:
        import pyarrow
        from pyarrow import parquet

        there = {row[NAME] for row in self._before}  # a kill may have come between the two files
        rows = [*self._before, *(line for line in read(self._beside) if line[NAME] not in there)]
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
    if any(not isinstance(row.get(NAME), str) for row in rows):
        raise DataError(f"{path}: has no column {NAME} of text; choose another --out")
    return rows
