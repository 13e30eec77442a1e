from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from pipeline.synthetic import evaluate_sight
from pipeline.synthetic.scenes import Scene
from pipeline.synthetic.words import plain


class Parrot:
    """Says the right thing of the scenes that were drawn, as it overhears them; of some of them something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: Sequence[tuple[str, str]] = ()) -> None:
        self._heard: list[Scene] = []
        self._wrong = wrong
        drawn = evaluate_sight.draw

        def overhear(scene: Scene, rng: object) -> Image.Image:
            self._heard.append(scene)
            return drawn(scene, rng)  # type: ignore[arg-type]

        monkeypatch.setattr(evaluate_sight, "draw", overhear)

    def caption(self, pictures: Sequence[Image.Image], beams: int) -> list[str]:
        said = [plain(scene) for scene in self._heard[-len(pictures) :]]
        for old, new in self._wrong:
            said = [caption.replace(old, new) for caption in said]
        return said


def test_who_names_everything_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = evaluate_sight.sight(Parrot(monkeypatch), scenes=70)  # type: ignore[arg-type]
    for of_it in figures.values():
        assert of_it == {"scenes": 70, "named": 1, "named_of_one": 1, "named_of_two": 1, "plain": 1}


def test_a_wrong_size_is_not_word_for_word_but_names_colour_and_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = evaluate_sight.sight(Parrot(monkeypatch, [("small", "big")]), scenes=70)  # type: ignore[arg-type]
    for of_it in figures.values():
        assert of_it["named"] == 1
        assert 0 < of_it["plain"] < 0.8


def test_a_wrong_colour_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = evaluate_sight.sight(Parrot(monkeypatch, [("red", "pink"), ("blue", "pink")]), scenes=70)  # type: ignore[arg-type]
    for of_it in figures.values():
        assert 0.2 < of_it["named_of_one"] < 1
        assert of_it["named_of_two"] < of_it["named_of_one"]
