"""The gallery: an HTML page of pictures with references, captions and scores, with search and sorting."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.evaluation import architectures
from pipeline.evaluation.attention_maps import WordMap
from pipeline.runtime import templates

_TEMPLATE = Path(__file__).with_name("gallery.html.jinja")
_SCRIPT = Path(__file__).with_name("gallery.js")
_EMOJI = re.compile("[\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f000-\U0001faff]+ ?")
_LINE = 19  # pixels from one line of a contact sheet to the next


@dataclass(frozen=True)
class Card:
    """A picture in the gallery.

    Attributes:
        name: file name.
        picture: a data: URL, so that the page is one file.
        references: captions written by people.
        captions: the caption of each system, by its name.
        scores: CIDEr-D of each of these captions.
        looked: where a system looked before each word of its caption, by the system's name.
    """

    name: str
    picture: str
    references: Sequence[str]
    captions: Mapping[str, str]
    scores: Mapping[str, float]
    looked: Mapping[str, Sequence[WordMap]] = field(default_factory=dict)

    def gain(self, model: str, versus: str | None) -> float:
        """Return the score of the model's caption minus that of another system's."""
        return self.scores[model] - self.scores[versus] if versus else 0.0


def select(scores: Sequence[float], gains: Sequence[float], most: int) -> list[int]:
    """Return the indices of at most `most` pictures: the best, worst, most improved and most worsened.

    The four groups take turns, skipping pictures already chosen. The indices are in the order of the data set.
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
    cards: Sequence[Card],
    metrics: Mapping[str, Mapping[str, float]],
    intervals_95: Mapping[str, Mapping[str, Sequence[float]]],
    pictures: int,
    tokenizer: str,
    title: str,
    model: str,
    versus: str | None,
    compared: Sequence[architectures.Row] = (),
    named: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return the gallery as one self-contained HTML page: it loads nothing and runs only its own script.

    Args:
        cards: the pictures, in the order of the page.
        metrics: each system's scores over all scored pictures.
        intervals_95: the ends of each score's 95 % interval.
        pictures: number of scored pictures.
        tokenizer: how captions were split into words.
        title: title of the page.
        model: the system that the page is about.
        versus: the system that it is compared with on each picture, if any.
        compared: the table of architectures; empty if none are compared.
        named: the cells of the table of what captions name, by system and column.
    """
    script = _SCRIPT.read_text(encoding="utf-8")
    return templates.render(
        _TEMPLATE,
        cards=cards,
        metrics=metrics,
        intervals_95=intervals_95,
        names=list(next(iter(metrics.values()))),
        pictures=pictures,
        tokenizer=tokenizer,
        title=title,
        model=model,
        versus=versus,
        compared=compared,
        named=named,
        note=architectures.NOTE,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def contact_sheet(items: Sequence[tuple[bytes, Mapping[str, str]]], columns: int = 4, side: int = 256) -> Image.Image:
    """Return a grid of pictures with their captions below, as one image.

    Emoji are left out, because the font has none.

    Args:
        items: the bytes of each picture, and its captions by their source.
        columns: columns of the grid.
        side: pixels of the square that a picture is fitted into.
    """
    cells = [_cell(data, captions, side) for data, captions in items]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % columns * width, k // columns * height))
    return sheet


def _cell(data: bytes, captions: Mapping[str, str], side: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        picture = ImageOps.contain(image.convert("RGB"), (side, side))
    text = "\n".join(
        line
        for who, caption in captions.items()
        for line in textwrap.wrap(
            f"{who}: {_EMOJI.sub('', caption) or '(nothing)'}", 36, max_lines=3, placeholder=" ..."
        )
    )
    page = Image.new("RGB", (side + 16, side + 24 + _LINE * 3 * len(captions)), "white")
    page.paste(picture, (8 + (side - picture.width) // 2, 8 + (side - picture.height) // 2))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(page).multiline_text((8, side + 16), text, fill="black", font=font, spacing=3)
    return page
