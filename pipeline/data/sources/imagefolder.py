"""The layout `imagefolder` of Hugging Face datasets: `metadata.jsonl` or `metadata.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.data.sources import table
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named, parse_json
from pipeline.data.sources.own_splits import split_in_path


def _read(file: CaptionsFile) -> Captions:
    """Read the captions; a folder (or zip) `train`, `validation` or `test` is the split of the pictures in it."""
    captions = table.read(file) if file.member.lower().endswith(".csv") else _read_lines(file)
    folder = file.member.removesuffix(file.base)

    def rows() -> Iterator[CaptionRow]:
        for row in captions.rows:
            yield replace(row, split=split_in_path(f"{folder}{row.picture}"))

    return captions._replace(rows=rows())


def _read_lines(file: CaptionsFile) -> Captions:
    """Read one JSON object per line with `file_name` and `text`, `caption` or a list `captions`."""
    encoding, lines = file.lines()

    def rows() -> Iterator[CaptionRow]:
        for number, line in lines:
            value = parse_json(line, f"{file.place}: line {number}")
            picture = value.get("file_name") if isinstance(value, dict) else None
            texts = next((value[key] for key in ("captions", "caption", "text") if key in value), "") if picture else ""
            # An empty list counts as one row with an empty caption, so that the line is accounted for.
            for text in (texts or [""]) if isinstance(texts, list) else [texts]:
                yield file.row(number, picture, text)

    return Captions(encoding, rows())


LAYOUT = Layout(
    name="imagefolder",
    expected="metadata.jsonl or metadata.csv (imagefolder)",
    suffixes=(".jsonl", ".csv"),
    recognises=named(r"metadata\.(jsonl|csv)"),
    read=_read,
)
