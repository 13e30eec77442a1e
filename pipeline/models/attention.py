"""Where a captioner looked before each word of a caption."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from transformers import BatchEncoding

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]+")


@dataclass(frozen=True)
class Attention:
    """Where a captioner looked before each word of a caption.

    Attributes:
        picture: as the model saw it, `(height, width, 3)` uint8.
        words: of the caption, without punctuation marks.
        weights: `(words, rows, columns)`; each word's sum to 1.
    """

    picture: np.ndarray
    words: list[str]
    weights: np.ndarray


def by_word(picture: np.ndarray, caption: str, encoded: BatchEncoding, weights: np.ndarray) -> Attention:
    """Return the attention before each word; that of a word's pieces is averaged.

    Args:
        picture: see `Attention`.
        caption: the caption.
        encoded: the caption's tokens, the begin mark first.
        weights: before each token but the begin mark, `(tokens - 1, cells)`; the cells are a square.
    """
    pieces: dict[int, list[np.ndarray]] = {}
    for token, word in enumerate(encoded.word_ids()):
        if word is not None:
            pieces.setdefault(word, []).append(weights[token - 1])
    side = math.isqrt(weights.shape[1])
    texts = {word: caption[slice(*encoded.word_to_chars(word))] for word in pieces}
    said = [word for word, text in texts.items() if not _PUNCTUATION.fullmatch(text)]
    averaged = np.array([np.mean(pieces[word], axis=0) for word in said]).reshape(-1, side, side)
    return Attention(picture, [texts[word] for word in said], averaged)
