"""Read the pictures in a parquet file of Hugging Face datasets: a column of structs with `bytes` and `path`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipeline.config.errors import DataError

_MAX_GROUP_BYTES = 2**31  # of the pictures in a row group, which is read into memory at once
_MAX_PATHS = 2**28  # characters of all paths, which stay in memory
_BATCH = 16  # rows to decode at a time
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
            characters = 0
            for written in self._values(group, "path"):
                characters += len(written or "")
                if characters > _MAX_PATHS:
                    raise DataError(f"{self._path}: the paths of a row group have more than {_MAX_PATHS:,} characters")
                self.paths.append(written or "")

    def _check(self, group: int) -> None:
        metadata = self._file.metadata.row_group(group)
        size = sum(metadata.column(k).total_uncompressed_size for k in range(metadata.num_columns))
        if size > _MAX_GROUP_BYTES:
            raise DataError(f"{self._path}: a row group has {size:,} bytes; write it with smaller row groups")

    def _values(self, group: int, field: str) -> Iterator[Any]:
        """Yield a field of the pictures of a row group.

        A few rows are decoded at a time: a small file can repeat one large value any number of times.
        """
        for batch in self._file.iter_batches(_BATCH, row_groups=[group], columns=[f"{self._column}.{field}"]):
            yield from ((value or {}).get(field) for value in batch.column(0).to_pylist())

    def _decoded(self, group: int) -> list[bytes | None]:
        pictures, size = [], 0
        for data in self._values(group, "bytes"):
            size += len(data or b"")
            if size > _MAX_GROUP_BYTES:
                raise DataError(
                    f"{self._path}: a row group has more than {_MAX_GROUP_BYTES:,} bytes; write smaller ones"
                )
            pictures.append(data)
        return pictures

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
                try:
                    self._groups[group] = self._decoded(group)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"damaged: {error}") from None
                if len(self._groups) > _GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            data = self._groups[group][row - self._starts[group]]
        if data is None:
            raise ValueError("no bytes")
        return data[: limit + 1]


def picture_column(schema: pa.Schema) -> str | None:
    """Return the name of the first column of pictures, or None."""
    for field in schema:
        kinds = {child.name: child.type for child in field.type} if pa.types.is_struct(field.type) else {}
        data, path = kinds.get("bytes", pa.null()), kinds.get("path", pa.null())
        if _is_binary(data) and is_text(path):
            return str(field.name)
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
