"""Read the pictures in a parquet file of Hugging Face datasets: a column of structs with `bytes` and `path`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from pipeline.config.errors import DataError

_MAX_GROUP_BYTES = 2**31  # of the pictures in a row group, which is read into memory at once
_GROUPS = 2  # kept in memory: threads read ahead into the next one


class ParquetReader:
    """An open parquet file. Threads may share it.

    Attributes:
        paths: for each row the path of its picture as written ("" if there is none); no rows if the file has no column
            of pictures.
    """

    def __init__(self, path: Path, file: parquet.ParquetFile) -> None:
        self._path = path
        self._file = file
        self._column = picture_column(file.schema_arrow)
        self._starts: list[int] = []
        self._groups: OrderedDict[int, list[bytes | None]] = OrderedDict()
        self._lock = threading.Lock()
        self.paths: list[str] = []
        if self._column is None:
            return
        for group in range(file.num_row_groups):
            self._starts.append(len(self.paths))
            self._check(group)
            values = file.read_row_group(group, columns=[f"{self._column}.path"]).column(0)
            self.paths += [(value or {}).get("path") or "" for value in values.to_pylist()]

    def _check(self, group: int) -> None:
        metadata = self._file.metadata.row_group(group)
        size = sum(metadata.column(k).total_uncompressed_size for k in range(metadata.num_columns))
        if size > _MAX_GROUP_BYTES:
            raise DataError(f"{self._path}: a row group has {size:,} bytes; write it with smaller row groups")

    def size(self, row: int) -> int:
        """Return 0: the picture of a row takes no memory of its own, because its row group is kept in memory."""
        return 0

    def read(self, row: int, limit: int) -> bytes:
        """Return the bytes of the picture in a row, at most `limit` + 1.

        Raises:
            ValueError: the row has no bytes, or the file is damaged.
        """
        group = max(k for k, start in enumerate(self._starts) if start <= row)
        with self._lock:
            if group not in self._groups:
                values = self._file.read_row_group(group, columns=[f"{self._column}.bytes"]).column(0)
                self._groups[group] = [(value or {}).get("bytes") for value in values.to_pylist()]
                if len(self._groups) > _GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            data = self._groups[group][row - self._starts[group]]
        if data is None:
            raise ValueError("no bytes")
        return data[: limit + 1]


def picture_column(schema: pa.Schema) -> str | None:
    """Return the name of the first column of pictures; None if there is none."""
    for field in schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {child.name for child in field.type}:
            return str(field.name)
    return None


def member_name(file: str, row: int, suffix: str = "") -> str:
    """Return the name that the picture of a row has among the files of a source.

    >>> member_name("data/train-00000.parquet", 7, ".jpg")
    'data/train-00000/0000007.jpg'
    """
    return f"{file.rpartition('.')[0]}/{row:07d}{suffix}"


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetReader]:
    """Open a parquet file for reading.

    Raises:
        DataError: it is no parquet file, is cut off, or has very large row groups.
    """
    try:
        file = parquet.ParquetFile(path)
        opened = ParquetReader(path, file)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as parquet ({reason}); download or create it again") from None
    with file:
        yield opened
