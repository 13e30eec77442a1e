from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from pipeline.synthetic import evaluate_attributes
from pipeline.synthetic.scenes import Scene
from pipeline.synthetic.words import plain


class Oracle:
    """A captioner that knows the drawn scenes and captions them correctly, except for the given replacements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: Sequence[tuple[str, str]] = ()) -> None:
        self._scenes: list[Scene] = []
        self._wrong = wrong
        original = evaluate_attributes.draw

        def draw(scene: Scene, rng: object) -> Image.Image:
            self._scenes.append(scene)
            return original(scene, rng)  # type: ignore[arg-type]

        monkeypatch.setattr(evaluate_attributes, "draw", draw)

    def caption(self, pictures: Sequence[Image.Image], beams: int) -> list[str]:
        captions = [plain(scene) for scene in self._scenes[-len(pictures) :]]
        for old, new in self._wrong:
            captions = [caption.replace(old, new) for caption in captions]
        return captions


def test_correct_captions_are_fully_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = evaluate_attributes.evaluate_attributes(Oracle(monkeypatch), scenes=70)  # type: ignore[arg-type]
    for measures in accuracy.values():
        assert measures == {"scenes": 70, "named": 1, "named_of_one": 1, "named_of_two": 1, "plain": 1}


def test_a_wrong_size_counts_as_named_but_not_as_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = evaluate_attributes.evaluate_attributes(Oracle(monkeypatch, [("small", "big")]), scenes=70)  # type: ignore[arg-type]
    for measures in accuracy.values():
        assert measures["named"] == 1
        assert 0 < measures["plain"] < 0.8


def test_a_wrong_colour_counts_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = evaluate_attributes.evaluate_attributes(
        Oracle(monkeypatch, [("red", "pink"), ("blue", "pink")]), scenes=70
    )  # type: ignore[arg-type]
    for measures in accuracy.values():
        assert 0.2 < measures["named_of_one"] < 1
        assert measures["named_of_two"] < measures["named_of_one"]
