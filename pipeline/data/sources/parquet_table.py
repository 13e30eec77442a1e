"""The layout `parquet` of Hugging Face datasets: a caption column beside a column of pictures or of their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipeline.config.errors import DataError
from pipeline.data.sources.delimited import Columns, find_columns
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named
from pipeline.data.sources.own_splits import split_in_path, split_named
from pipeline.data.sources.parquet_file import is_text, member_name, picture_column

_DAMAGED = (pa.ArrowException, OSError)
_BATCH = 64  # rows to decode at a time


def is_captions(data: bytes, columns: Columns) -> bool:
    """Return whether a parquet file has a picture column and a caption column; also if it cannot be read."""
    try:
        return _find_columns(parquet.ParquetFile(pa.BufferReader(data)).schema_arrow, columns) is not None
    except _DAMAGED:
        return True  # `_read` says why it cannot be read


def _find_columns(schema: pa.Schema, wanted: Columns) -> tuple[int, int] | None:
    """Return the places of the picture column and the caption column, or None if one is missing."""
    pictures = picture_column(schema)
    # A column of pictures is always the picture column, whatever it is called.
    return find_columns(["image" if name == pictures else name for name in schema.names], wanted)


def _read(file: CaptionsFile) -> Captions:
    """Read the rows, numbered from 1; a list of captions counts as several rows."""
    try:
        table = parquet.ParquetFile(pa.BufferReader(file.data))
        names = table.schema_arrow.names
        pictures = picture_column(table.schema_arrow)
        columns = _find_columns(table.schema_arrow, file.columns)
    except _DAMAGED as error:
        raise _damaged(file, error) from None
    if columns is None:
        raise DataError(
            f"{file.place}: found the columns {', '.join(names[:8])}; name the columns `image` and `caption`, or set"
            " ingest.columns in params.yaml"
        )
    picture, caption = (names[place] for place in columns)
    for name in (picture, caption):
        if names.count(name) > 1:
            raise DataError(f"{file.place}: has several columns called {name}; rename all but one")
    return Captions("parquet", _rows(file, picture if pictures is None else None, caption))


def _damaged(file: CaptionsFile, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file.place}: cannot be read as parquet ({reason}); download it again")


def _rows(file: CaptionsFile, picture: str | None, caption: str) -> Iterator[CaptionRow]:
    """Yield the rows; without a `picture` column of names the pictures are those of the file itself."""
    columns = [caption] + ([picture] if picture else [])
    # A few rows at a time and dictionaries as they are: a small file can repeat one large text any number of times.
    source = pa.BufferReader(file.data)
    schema = parquet.ParquetFile(source).schema_arrow
    table = parquet.ParquetFile(source, read_dictionary=[name for name in columns if is_text(schema.field(name).type)])
    split = split_in_path(file.member) or split_named(file.base.partition("-")[0].partition(".")[0])
    number = 0
    try:
        for batch in table.iter_batches(_BATCH, columns=columns):
            for place in range(batch.num_rows):
                number += 1
                texts = batch.column(caption)[place].as_py()
                name: Any = batch.column(picture)[place].as_py() if picture else member_name(file.member, number - 1)
                for text in (texts or [""]) if isinstance(texts, list) else [texts or ""]:
                    yield file.row(number, name, text, split)
    except _DAMAGED as error:
        raise _damaged(file, error) from None


LAYOUT = Layout(
    name="parquet",
    expected="a .parquet of Hugging Face datasets",
    suffixes=(".parquet",),
    recognises=named(r".*\.parquet"),
    read=_read,
)
