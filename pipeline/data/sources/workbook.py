"""The layout `workbook`: an `.xlsx` of Excel with a picture column and a caption column in one of its sheets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import openpyxl

from pipeline.config.errors import DataError
from pipeline.data.sources.archive import zip_unpacks_to
from pipeline.data.sources.delimited import find_columns
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named

_HEADER_ROWS = 10  # a title may stand above the header
_MAX_UNPACKED = 2**30


def _read(file: CaptionsFile) -> Captions:
    """Read the first sheet that has the columns; rows are numbered as Excel shows them."""
    unpacked = zip_unpacks_to(file.data)
    if unpacked is None or unpacked > _MAX_UNPACKED:
        raise DataError(f"{file.place}: is not an Excel workbook, or unpacks to over 1 GiB; save it as CSV (UTF-8)")
    try:
        book = openpyxl.load_workbook(io.BytesIO(file.data), read_only=True, data_only=True)
        for sheet in book.worksheets:
            for header, fields in enumerate(islice(sheet.iter_rows(values_only=True), _HEADER_ROWS), start=1):
                columns = find_columns([_text(field) for field in fields], file.columns)
                if columns:
                    return Captions(f"xlsx, {sheet.title}", _rows(file, sheet, header, columns))
    except Exception as error:  # openpyxl and the XML parser raise many types of exceptions on damaged files
        raise _damaged(file, error) from None
    raise DataError(
        f"{file.place}: no sheet has the columns; name them `image` and `caption`, or set ingest.columns in params.yaml"
    )


def _rows(file: CaptionsFile, sheet: Any, header: int, columns: tuple[int, int]) -> Iterator[CaptionRow]:
    picture, caption = columns
    try:  # rows are parsed when it is their turn
        for number, fields in enumerate(sheet.iter_rows(min_row=header + 1, values_only=True), start=header + 1):
            texts = [_text(field) for field in fields] + [""] * (max(columns) + 1 - len(fields))
            if any(texts):
                yield file.row(number, texts[picture], texts[caption])
    except Exception as error:
        raise _damaged(file, error) from None


def _damaged(file: CaptionsFile, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"{file.place}: cannot be read as an Excel workbook ({reason}); save it as CSV (UTF-8)")


def _text(field: object) -> str:
    return "" if field is None else str(field)


LAYOUT = Layout(
    name="workbook",
    expected="an .xlsx with the columns `image` and `caption`",
    suffixes=(".xlsx",),
    recognises=named(r"(?!~\$).*\.xlsx"),
    read=_read,
)
