"""A page to look at: pictures, what people said of them, and what each model said; to search, and to order by score."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.runtime import templates

_TEMPLATE = Path(__file__).with_name("gallery.html.jinja")
_SCRIPT = Path(__file__).with_name("gallery.js")
_EMOJI = re.compile("[\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+ ?")
_LINE = 19  # pixels from one line of a contact sheet to the next


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery.

    Attributes:
        name: of its file.
        picture: as a data: URL, so that the page is one file.
        references: what people said.
        captions: what each system said, by its name.
        scores: the CIDEr-D of each of these captions.
    """

    name: str
    picture: str
    references: Sequence[str]
    captions: Mapping[str, str]
    scores: Mapping[str, float]

    def gain(self, model: str, versus: str | None) -> float:
        """By how much the model's caption scores above another system's."""
        return self.scores[model] - self.scores[versus] if versus else 0.0


def telling(scores: Sequence[float], gains: Sequence[float], most: int) -> list[int]:
    """The indices of the pictures to show where there are more than `most`: best, worst, most improved, most worsened.

    As many of each; where these are the same pictures, more of each. In the order of the data set.
    """
    order = range(len(scores))
    rankings = [
        sorted(order, key=lambda i: -scores[i]),
        sorted(order, key=lambda i: scores[i]),
        sorted(order, key=lambda i: -gains[i]),
        sorted(order, key=lambda i: gains[i]),
    ]
    chosen: dict[int, None] = {}
    for ranked in zip(*rankings, strict=True):
        chosen |= dict.fromkeys(ranked)
    return sorted(list(chosen)[:most])


def render(
    shown: Sequence[Shown],
    metrics: Mapping[str, Mapping[str, float]],
    ends: Mapping[str, Mapping[str, Sequence[float]]],
    pictures: int,
    title: str,
    model: str,
    versus: str | None,
) -> str:
    """The gallery as one self-contained HTML page, which loads nothing from anywhere and runs no script but its own.

    Args:
        shown: the pictures, in the order in which they stand on the page.
        metrics: each system's metrics over all scored pictures.
        ends: of each metric the ends of its 95 % interval.
        pictures: how many were scored.
        title: of the page.
        model: the system that the page is about.
        versus: the system that it is compared with picture by picture, if any.
    """
    script = _SCRIPT.read_text(encoding="utf-8")
    return templates.render(
        _TEMPLATE,
        shown=shown,
        metrics=metrics,
        ends=ends,
        names=list(next(iter(metrics.values()))),
        pictures=pictures,
        title=title,
        model=model,
        versus=versus,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def contact_sheet(items: Sequence[tuple[bytes, Mapping[str, str]]], columns: int = 4, side: int = 256) -> Image.Image:
    """Pictures with what is said of each written below it, in a grid: for pages that show no text.

    The font has no emoji, so these are left out.

    Args:
        items: of each picture its bytes, and what was said by whom.
        columns: of the grid.
        side: of the square that a picture is fitted into, in pixels.
    """
    cells = [_cell(data, said, side) for data, said in items]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % columns * width, k // columns * height))
    return sheet


def _cell(data: bytes, said: Mapping[str, str], side: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        picture = ImageOps.contain(image.convert("RGB"), (side, side))
    text = "\n".join(
        line
        for who, caption in said.items()
        for line in textwrap.wrap(
            f"{who}: {_EMOJI.sub('', caption) or '(nothing)'}", 36, max_lines=3, placeholder=" ..."
        )
    )
    page = Image.new("RGB", (side + 16, side + 24 + _LINE * 3 * len(said)), "white")
    page.paste(picture, (8 + (side - picture.width) // 2, 8 + (side - picture.height) // 2))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(page).multiline_text((8, side + 16), text, fill="black", font=font, spacing=3)
    return page
