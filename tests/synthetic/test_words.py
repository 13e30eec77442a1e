from __future__ import annotations

import random

from pipeline.data.text import clean
from pipeline.synthetic.scenes import PLACES, Scene, Thing, random_scene
from pipeline.synthetic.words import instagram, kinds_only, names_all, plain

BOAT = Thing("small", "red", "boat", left=0.1, top=0.5, side=0.3)
TOWER = Thing("big", "blue", "lighthouse", left=0.52, top=0.4, side=0.46)


def test_plain_captions_contain_size_colour_kind_relation_and_place() -> None:
    assert plain(Scene(PLACES["beach"], (BOAT,))) == "a small red boat on the beach"
    both = Scene(PLACES["beach"], (BOAT, TOWER))
    assert plain(both) == "a small red boat left of a big blue lighthouse on the beach"
    assert kinds_only(both) == "a boat left of a lighthouse on the beach"


def test_captions_name_everything_in_their_scene_and_nothing_of_another() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene, other = random_scene(rng, two=0.5), random_scene(rng, two=0.5)
        different = {thing.pair for thing in other.things} - {thing.pair for thing in scene.things}
        for caption in (plain(scene), *instagram(scene, rng)):
            assert names_all(clean(caption), scene), caption
            assert names_all(caption, other) == (not different)


def test_swapped_colours_do_not_count_as_named() -> None:
    assert not names_all("a big red lighthouse and a small blue boat", Scene(PLACES["beach"], (BOAT, TOWER)))


def test_a_scene_has_two_to_five_captions_in_different_styles() -> None:
    rng = random.Random(4)
    spoken = [instagram(random_scene(rng), rng) for _ in range(300)]
    assert {len(captions) for captions in spoken} == {2, 3, 4, 5}
    assert all(len(set(captions)) == len(captions) for captions in spoken)
    everything = "".join(caption for captions in spoken for caption in captions)
    for mark in ("#", "\n", "\N{YELLOW HEART}", "!"):
        assert mark in everything
