from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.attention_maps import highlighted, word_maps

WHITE = Image.new("RGB", (112, 112), "white")


def test_a_map_is_bright_where_the_attention_was_and_dark_elsewhere() -> None:
    attention = np.full((7, 7), 0.01)
    attention[1, 5] = 0.5
    found = np.asarray(highlighted(WHITE, attention))[..., 0]
    assert found[24, 88] > 240  # the middle of the cell, 16 pixels a side
    assert found[88, 24] < 60
    even = np.asarray(highlighted(WHITE, np.full((7, 7), 1 / 49)))
    assert even.min() == 255


def test_each_word_has_a_map_up_to_a_bound() -> None:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    few = word_maps(picture, ["a", "dog"], np.full((2, 2, 2), 0.25))
    assert [found.word for found in few] == ["a", "dog"]
    kind, _, data = few[0].picture.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (112, 112)
    assert few == word_maps(picture, ["a", "dog"], np.full((2, 2, 2), 0.25))
    assert len(word_maps(picture, ["word"] * 40, np.full((40, 2, 2), 0.25))) == 24


def test_words_and_weights_must_match() -> None:
    with pytest.raises(ValueError, match="longer"):
        word_maps(np.zeros((8, 8, 3), dtype=np.uint8), ["a"], np.full((2, 2, 2), 0.25))
