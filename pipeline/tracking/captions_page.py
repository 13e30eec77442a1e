"""An HTML page of test pictures with the captions of every system, for MLflow, whose own tables cut captions off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.dataset import PictureReader
from pipeline.data.images import data_url
from pipeline.runtime import templates

NAME = "captions.html"
_TEMPLATE = Path(__file__).with_name("captions_page.html.jinja")
_SIDE = 160  # pixels


def render(lines: Sequence[Mapping[str, Any]], reader: PictureReader) -> str:
    """Return the page.

    Args:
        lines: lines of captions.jsonl.
        reader: reads the test pictures.
    """
    rows = [
        {
            "picture": data_url(reader.read(line["file_name"]), _SIDE),
            "captions": line["captions"],
            "references": line["references"],
        }
        for line in lines
    ]
    return templates.render(_TEMPLATE, rows=rows, systems=list(lines[0]["captions"]))
