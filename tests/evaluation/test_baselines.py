from __future__ import annotations

import pytest

from pipeline.data.dataset import Example
from pipeline.evaluation import baselines
from tests.conftest import jpeg


def example(*captions: str) -> Example:
    return Example("x.jpg", list(captions), "0" * 64, ["s"], ["o"])


def test_ties_for_the_most_frequent_caption_go_to_the_first_in_the_alphabet() -> None:
    assert baselines.most_frequent([example("b", "c"), example("c"), example("b", "a")]) == "b"


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_the_chunk_size_does_not_change_the_nearest_picture(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    train = [example("red"), example("green"), example("blue")]
    pictures = [jpeg("red"), jpeg("green"), jpeg("blue")]
    assert baselines.nearest(train, pictures, [jpeg("navy"), jpeg("darkred"), jpeg("lime")]) == ["blue", "red", "green"]
