"""The layout `parquet` of Hugging Face datasets: a caption column beside a column of pictures or of their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipeline.config.errors import DataError
from pipeline.data.sources.delimited import find_columns
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named
from pipeline.data.sources.own_splits import split_in_path, split_named
from pipeline.data.sources.parquet_file import member_name, picture_column


def _read(file: CaptionsFile) -> Captions:
    """Read the rows, numbered from 1; a list of captions counts as several rows."""
    try:
        table = parquet.ParquetFile(pa.BufferReader(file.data))
        names = table.schema_arrow.names
        pictures = picture_column(table.schema_arrow)
        # A column of pictures is always the picture column, whatever it is called.
        columns = find_columns(["image" if name == pictures else name for name in names], file.columns)
    except pa.ArrowException as error:
        raise DataError(f"{file.place}: cannot be read as parquet ({error}); download it again") from None
    if columns is None:
        raise DataError(
            f"{file.place}: found the columns {', '.join(names[:8])}; name the columns `image` and `caption`, or set"
            " ingest.columns in params.yaml"
        )
    picture, caption = (names[place] for place in columns)
    return Captions("parquet", _rows(file, table, picture if pictures is None else None, caption))


def _rows(file: CaptionsFile, table: parquet.ParquetFile, picture: str | None, caption: str) -> Iterator[CaptionRow]:
    """Yield the rows; without a `picture` column of names the pictures are those of the file itself."""
    base = file.member.rpartition("/")[2]
    split = split_in_path(file.member) or split_named(base.partition("-")[0].partition(".")[0])
    number = 0
    for batch in table.iter_batches(columns=[caption] + ([picture] if picture else [])):
        for line in batch.to_pylist():
            number += 1
            name: Any = line[picture] if picture else member_name(file.member, number - 1)
            texts = line[caption]
            for text in (texts or [""]) if isinstance(texts, list) else [texts or ""]:
                yield file.row(number, name, text, split)


LAYOUT = Layout(
    name="parquet",
    expected="a .parquet of Hugging Face datasets",
    suffixes=(".parquet",),
    recognises=named(r".*\.parquet"),
    read=_read,
)
