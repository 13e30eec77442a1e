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
    """A word of a caption.

    Attributes:
        word: the word.
        picture: its map as a data: URL.
        low, high: the lowest and the highest attention of a cell, times the mean; 1 and 1 if it looked everywhere.
    """

    word: str
    picture: str
    low: float
    high: float


def word_maps(picture: np.ndarray, words: Sequence[str], weights: np.ndarray) -> list[WordMap]:
    """Return the maps of the first words of a caption.

    All have the same scale, from the lowest attention in the caption (dark) to the highest (bright), because a
    captioner that has learned little looks almost everywhere at once.

    Args:
        picture: as the model saw it, `(height, width, 3)` uint8.
        words: of the caption.
        weights: the attention before each word, `(words, rows, columns)`; each word's sum to 1.
    """
    seen = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pairs = list(zip(words, weights, strict=True))[:_MOST_WORDS]
    maps = []
    for word, attention in pairs:
        shown = highlighted(seen, attention, float(weights.min()), float(weights.max()))
        times = attention * attention.size
        maps.append(WordMap(word, _data_url(shown), float(times.min()), float(times.max())))
    return maps


def highlighted(picture: Image.Image, attention: np.ndarray, low: float, high: float) -> Image.Image:
    """Return a picture darkened where the attention was low.

    Args:
        picture: RGB.
        attention: `(rows, columns)`.
        low, high: the attention that makes a cell dark, and that which keeps its brightness.
    """
    share = (attention - low) / (high - low) if high > low else np.ones_like(attention)
    cells = Image.fromarray(np.round(share * 255).astype(np.uint8))
    bright = cells.resize(picture.size, Image.Resampling.BICUBIC)
    dark = picture.point([round(_DARK * value) for value in range(256)] * 3)
    return Image.composite(picture, dark, bright)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
