from __future__ import annotations

import random

import numpy as np

from pipeline.synthetic.scenes import COLOURS, PLACES, SIDE, Scene, Thing, draw, random_scene, unseen_pairs
from pipeline.synthetic.things import THINGS


def scenes(count: int, **how: object) -> list[Scene]:
    rng = random.Random(5)
    return [random_scene(rng, **how) for _ in range(count)]  # type: ignore[arg-type]


def test_the_same_random_state_gives_the_same_picture_bit_for_bit() -> None:
    for scene in scenes(20):
        one, two = (draw(scene, np.random.default_rng(9)) for _ in range(2))
        assert one.size == (SIDE, SIDE)
        assert one.tobytes() == two.tobytes()


def test_things_lie_within_the_picture_and_apart() -> None:
    for scene in scenes(500, two=0.5):
        for thing in scene.things:
            assert thing.left >= 0
            assert thing.top >= 0
            assert thing.left + thing.side <= 1
            assert thing.top + thing.side <= 1
        if len(scene.things) == 2:
            left, right = scene.things
            assert left.left + left.side < right.left
            assert left.kind != right.kind


def changed(kind: str, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that a thing changes, and which of them have its colour."""
    place = next(place for place in PLACES.values() if kind in place.things)
    things = (Thing("big", colour, kind, left=0.3, top=0.4, side=0.46),)
    with_it, without = (
        np.asarray(draw(Scene(place, what), np.random.default_rng(1)), dtype=float) for what in (things, ())
    )
    light = 1 + np.random.default_rng(1).uniform(-0.18, 0.18)
    different = np.abs(with_it - without).max(axis=2) > 24
    named = np.abs(with_it - np.clip(np.array(COLOURS[colour]) * light, 0, 255)).max(axis=2) < 16
    return different, different & named


def test_every_thing_is_drawn_in_its_colour() -> None:
    for kind in THINGS:
        for colour in COLOURS:
            different, named = changed(kind, colour)
            assert different.mean() > 0.015, (colour, kind)
            if colour not in ("grey", "brown", "white"):  # the grounds come near to these
                assert named.mean() > 0.02, (colour, kind)


def test_no_two_things_of_a_place_have_the_same_shape() -> None:
    for place in PLACES.values():
        shapes = [changed(kind, "red")[0] for kind in place.things]
        for k, one in enumerate(shapes):
            for other in shapes[k + 1 :]:
                assert (one ^ other).mean() > 0.02


def test_pairs_are_avoided_or_required() -> None:
    unseen = unseen_pairs()
    assert len(unseen) == 15
    for scene in scenes(800, two=0.5, avoid=unseen):
        assert not unseen & {thing.pair for thing in scene.things}
    found = {thing.pair for scene in scenes(800, two=0.5, only=unseen) for thing in scene.things}
    assert found == unseen


def test_training_shows_every_pair_except_the_unseen_ones() -> None:
    seen = {thing.pair for scene in scenes(4000, avoid=unseen_pairs()) for thing in scene.things}
    every = {(colour, kind) for colour in COLOURS for kind in THINGS}
    assert seen == every - unseen_pairs()


def test_without_spread_things_are_big_and_centred() -> None:
    for scene in scenes(50, two=0.0, spread=0.0):
        (thing,) = scene.things
        assert abs(thing.side - 0.46) < 1e-9
        assert abs(thing.left + thing.side / 2 - 0.5) < 1e-9
