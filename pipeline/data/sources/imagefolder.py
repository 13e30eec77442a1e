"""The layout `imagefolder` of Hugging Face datasets: `metadata.jsonl` or `metadata.csv`."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.sources import table
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named, parse_json


def _read(file: CaptionsFile) -> Captions:
    """Read a table, or one JSON object per line with `file_name` and `text`, `caption` or a list `captions`."""
    if file.member.lower().endswith(".csv"):
        return table.read(file)
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
