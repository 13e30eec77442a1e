from __future__ import annotations

import random

import pytest

from pipeline.evaluation.restyled import Frames
from pipeline.synthetic.scenes import random_scene
from pipeline.synthetic.words import instagram, names_all, plain

BEFORE = ["a small red boat on the beach", "a small blue ball on the beach", "a big green cup at home", "a dog"]
CAPTIONS = [
    ["this tiny red boat!  #beachlife", "red boat kind of day"],
    ["this tiny blue ball!  #beachlife"],
    ["huge green cup at home \u2615"],
    ["nothing alike"],
]


def test_a_caption_takes_the_most_frequent_frame_of_its_key() -> None:
    frames = Frames(BEFORE, CAPTIONS)
    assert frames.restyle("a small pink crab on the beach") == "this tiny pink crab!  #beachlife"
    assert frames.restyle("A Big white tent at home") == "huge white tent at home \u2615"


@pytest.mark.parametrize("said", ["", "a small pink crab in town", "a dog", "a small crab", "!!"])
def test_a_caption_that_fits_no_frame_stays_as_it_is(said: str) -> None:
    assert Frames(BEFORE, CAPTIONS).restyle(said) == said
    assert Frames([], []).restyle(said) == said


def test_the_order_of_the_training_pictures_does_not_matter() -> None:
    one, two = Frames(BEFORE, CAPTIONS), Frames(BEFORE[::-1], CAPTIONS[::-1])
    for said in BEFORE:
        assert one.restyle(said) == two.restyle(said)


def test_drawn_scenes_are_captioned_in_the_style_of_the_sample_without_training() -> None:
    rng = random.Random(1)
    scenes = [random_scene(rng, two=0.5) for _ in range(400)]
    frames = Frames([plain(scene) for scene in scenes[:300]], [instagram(scene, rng) for scene in scenes[:300]])
    restyled = [(frames.restyle(plain(scene)), scene) for scene in scenes[300:]]
    changed = [(text, scene) for text, scene in restyled if text != plain(scene)]
    assert len(changed) > 90
    assert all(names_all(text, scene) for text, scene in changed)
