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
    found = np.asarray(highlighted(WHITE, attention, 0.01, 0.5))[..., 0]
    assert found[24, 88] > 240  # the middle of the cell, 16 pixels a side
    assert found[88, 24] < 60
    even = np.asarray(highlighted(WHITE, np.full((7, 7), 1 / 49), 1 / 49, 1 / 49))
    assert even.min() == 255


def test_the_maps_of_a_caption_have_one_scale_and_say_how_far_from_even_they_are() -> None:
    even, peak = np.full((2, 2), 0.25), np.array([[0.7, 0.1], [0.1, 0.1]])
    first, second = word_maps(np.full((64, 64, 3), 255, dtype=np.uint8), ["a", "dog"], np.stack([even, peak]))
    assert (first.low, first.high) == (1, 1)
    assert (second.low, second.high) == pytest.approx((0.4, 2.8))
    brightness = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(m.picture.partition(",")[2])))) for m in (first, second)
    ]
    assert brightness[0].max() < 140  # a quarter of the way from 0.1 to 0.7
    assert brightness[1][10, 10].min() > 240


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
