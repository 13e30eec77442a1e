"""Where a captioner looked before each word: a small picture per word, bright where the attention was."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SIDE = 112  # pixels of a map
_DARK = 0.15  # brightness where there was no attention
_MOST_WORDS = 24  # maps per caption


@dataclass(frozen=True)
class WordMap:
    """A word of a caption, and its map as a data: URL."""

    word: str
    picture: str


def word_maps(picture: np.ndarray, words: Sequence[str], weights: np.ndarray) -> list[WordMap]:
    """Return the maps of the first words of a caption.

    Args:
        picture: as the model saw it, `(height, width, 3)` uint8.
        words: of the caption.
        weights: the attention before each word, `(words, rows, columns)`.
    """
    seen = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pairs = list(zip(words, weights, strict=True))[:_MOST_WORDS]
    return [WordMap(word, _data_url(highlighted(seen, attention))) for word, attention in pairs]


def highlighted(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """Return a picture darkened where the attention was low; the cell with the most keeps its brightness.

    Args:
        picture: RGB.
        attention: `(rows, columns)`, at least one cell above 0.
    """
    cells = Image.fromarray(np.round(attention / attention.max() * 255).astype(np.uint8))
    bright = cells.resize(picture.size, Image.Resampling.BICUBIC)
    dark = picture.point([round(_DARK * value) for value in range(256)] * 3)
    return Image.composite(picture, dark, bright)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
