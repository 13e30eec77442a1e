"""A page to look at: pictures, what people said of them, and what each model said."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_TEMPLATE = "gallery.html.jinja"


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery.

    Attributes:
        picture: as a data: URL, so that the page is one file.
        references: what people said.
        captions: what each system said, by its name.
        scores: the CIDEr-D of each of these captions.
    """

    picture: str
    references: Sequence[str]
    captions: Mapping[str, str]
    scores: Mapping[str, float]


def render(shown: Sequence[Shown], metrics: Mapping[str, Mapping[str, float]], pictures: int, title: str) -> str:
    """The gallery as one self-contained HTML page, which loads nothing from anywhere.

    Captions come from strangers, so all text is escaped.

    Args:
        shown: the pictures, in the order in which they stand on the page.
        metrics: each system's metrics over all scored pictures.
        pictures: how many were scored.
        title: of the page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    names = list(next(iter(metrics.values())))
    return environment.get_template(_TEMPLATE).render(
        shown=shown, metrics=metrics, names=names, pictures=pictures, title=title
    )


def captioned(data: bytes, caption: str, reference: str, side: int = 256) -> bytes:
    """A picture with the model's caption and a reference written below it, as PNG."""
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    scale = side / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    font = ImageFont.load_default(size=14)
    text = "\n".join(
        line
        for who, said in (("model", caption or "(nothing)"), ("people", reference))
        for line in textwrap.wrap(f"{who}: {said}", width=36, max_lines=4, placeholder=" ...")
    )
    page = Image.new("RGB", (side, side + 150), "white")
    page.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    ImageDraw.Draw(page).multiline_text((6, side + 8), text, fill="black", font=font, spacing=3)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()
