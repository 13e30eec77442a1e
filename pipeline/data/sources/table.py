"""The layout `table`: a `.csv` or `.tsv` with a header such as `image,caption`.

It also reads Kaggle's instagram-images-with-captions, whose second CSV has no header.
"""

from __future__ import annotations

from pipeline.data.sources.delimited import read_table
from pipeline.data.sources.layout import Captions, CaptionsFile, Layout, named


def read(file: CaptionsFile) -> Captions:
    """Read a table with a column of pictures and a column of captions; other layouts are tables too."""
    table = read_table(file.data, file.place, file.columns)
    rows = (file.row(number, *(fields or (None, None))) for number, fields in table.rows)
    return Captions(f"{table.encoding}, {table.delimiter}", rows)


LAYOUT = Layout(
    name="table",
    expected="a .csv with the columns `image` and `caption`",
    suffixes=(".csv", ".tsv"),
    recognises=named(r".*\.[ct]sv"),
    read=read,
)
