"""Random scenes (a place with one or two things) and their pictures.

The same random state and Pillow version give the same picture, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pipeline.synthetic.things import THINGS, Colour, Pen

SIDE = 128  # of the square picture, in pixels
_SUPERSAMPLE = 3  # pictures are drawn this many times larger and then reduced, for smooth edges
_TALL = SIDE * _SUPERSAMPLE

COLOURS: dict[str, Colour] = {
    "red": (206, 30, 36),
    "orange": (246, 134, 28),
    "yellow": (250, 222, 50),
    "green": (36, 150, 60),
    "teal": (50, 200, 190),
    "blue": (40, 80, 210),
    "purple": (130, 55, 180),
    "pink": (248, 140, 190),
    "brown": (124, 78, 40),
    "grey": (132, 134, 140),
    "white": (248, 248, 246),
}
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.30, 0.34),
    "big": (0.44, 0.48),
}  # as fractions of the picture's side
_BIG = sum(SIZES["big"]) / 2

Pair = tuple[str, str]  # the colour and kind of a thing


@dataclass(frozen=True)
class Place:
    """A place where things are.

    Attributes:
        where: its name in captions ("on the beach").
        far: colours of the background at the top and at the horizon.
        near: colours of the ground at the horizon and at the bottom.
        horizon: height of the horizon, from the top, as a fraction of the picture's side.
        stand: range of the height, from the top, at which things stand, as fractions of the picture's side.
        things: the kinds of things that occur there.
    """

    where: str
    far: tuple[Colour, Colour]
    near: tuple[Colour, Colour]
    horizon: float
    stand: tuple[float, float]
    things: tuple[str, ...]


PLACES: dict[str, Place] = {
    "beach": Place(
        where="on the beach",
        far=((150, 205, 240), (95, 170, 205)),
        near=((240, 222, 176), (222, 196, 146)),
        horizon=0.58,
        stand=(0.76, 0.92),
        things=("boat", "umbrella", "ball", "bucket", "lighthouse", "crab"),
    ),
    "town": Place(
        where="in town",
        far=((205, 222, 232), (228, 228, 222)),
        near=((150, 150, 156), (118, 118, 126)),
        horizon=0.7,
        stand=(0.78, 0.92),
        things=("house", "car", "bus", "flag", "bicycle", "tree"),
    ),
    "night sky": Place(
        where="in the night sky",
        far=((14, 18, 44), (30, 36, 78)),
        near=((22, 24, 40), (12, 14, 24)),
        horizon=0.93,
        stand=(0.52, 0.86),
        things=("moon", "star", "rocket", "balloon", "kite", "planet"),
    ),
    "kitchen table": Place(
        where="on the kitchen table",
        far=((236, 226, 214), (222, 208, 194)),
        near=((178, 128, 86), (146, 100, 64)),
        horizon=0.62,
        stand=(0.76, 0.92),
        things=("cup", "bottle", "apple", "cake", "candle", "teapot"),
    ),
    "meadow": Place(
        where="in the meadow",
        far=((176, 216, 240), (214, 232, 226)),
        near=((150, 196, 104), (104, 158, 76)),
        horizon=0.5,
        stand=(0.74, 0.92),
        things=("flower", "mushroom", "tent", "butterfly", "bird", "tree"),
    ),
}


@dataclass(frozen=True)
class Thing:
    """A thing: the names of its size, colour and kind, and its square as fractions of the picture's side."""

    size: str
    colour: str
    kind: str
    left: float
    top: float
    side: float

    @property
    def pair(self) -> Pair:
        """The colour and the kind."""
        return self.colour, self.kind


@dataclass(frozen=True)
class Scene:
    """A place with one or two things; of two things the left one is first."""

    place: Place
    things: tuple[Thing, ...]


def unseen_pairs() -> frozenset[Pair]:
    """Return the combinations of colour and kind that neither the sample nor the training of `git-demo` contains.

    Three kinds of every place lack one colour each, which is 15 of 319 pairs: every kind and every colour is frequent,
    but these combinations never occur.
    """
    kinds = [kind for place in PLACES.values() for kind in place.things[::2]]
    colours = list(COLOURS)
    return frozenset((colours[k % len(colours)], kind) for k, kind in enumerate(kinds))


def random_scene(
    rng: random.Random,
    two: float = 1 / 3,
    avoid: Collection[Pair] = (),
    only: Collection[Pair] = (),
    spread: float = 1.0,
) -> Scene:
    """Return a random scene.

    Args:
        rng: determines the scene.
        two: probability of two things, of different kinds.
        avoid: pairs of colour and kind that must not occur.
        only: if given, every thing is one of these pairs, which must include two kinds of every place.
        spread: how much, from 0 to 1, things vary from a big one in the middle of its slot.
    """
    place = PLACES[rng.choice(list(PLACES))]
    slots = [(0.0, 0.5), (0.5, 1.0)] if rng.random() < two else [(0.1, 0.9)]
    things: list[Thing] = []
    for left, right in slots:
        while True:
            kind, colour = rng.choice(place.things), rng.choice(list(COLOURS))
            fits = (colour, kind) in only if only else (colour, kind) not in avoid
            if fits and kind not in [thing.kind for thing in things]:
                break
        size = rng.choice(list(SIZES))
        side = _near(_BIG, rng.uniform(*SIZES[size]), spread)
        middle, foot = (left + right - side) / 2, sum(place.stand) / 2
        x = _near(middle, rng.uniform(left + 0.01, right - side - 0.01), spread)
        y = _near(foot, rng.uniform(*place.stand), spread) - side
        things.append(Thing(size=size, colour=colour, kind=kind, left=x, top=y, side=side))
    return Scene(place, tuple(things))


def _near(middle: float, value: float, spread: float) -> float:
    return middle + spread * (value - middle)


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Return the scene as an RGB picture of `SIDE` x `SIDE` pixels; `rng` determines light, backdrop and grain."""
    light = 1 + rng.uniform(-0.18, 0.18)
    horizon = scene.place.horizon + rng.uniform(-0.03, 0.03)
    page = _ground(scene.place, round(horizon * _TALL)).copy()
    pen = ImageDraw.Draw(page)
    _backdrop(pen, scene.place, horizon, rng)
    for thing in scene.things:
        square = (thing.left * _TALL, thing.top * _TALL, thing.side * _TALL)
        THINGS[thing.kind](Pen(pen, *square, COLOURS[thing.colour], line=_SUPERSAMPLE))
    small = np.asarray(page.reduce(_SUPERSAMPLE), dtype=np.float32)
    grain = rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * 2.5
    return Image.fromarray(np.clip(small * light + grain, 0, 255).astype(np.uint8))


@cache
def _ground(place: Place, horizon: int) -> Image.Image:
    """Return the background and the ground: two gradients that meet at the horizon."""
    rows = np.empty((_TALL, 3), dtype=np.float32)
    for part, (first, last) in ((rows[:horizon], place.far), (rows[horizon:], place.near)):
        part[:] = np.linspace(first, last, len(part))
    return Image.fromarray(np.repeat(rows.astype(np.uint8)[:, None], _TALL, axis=1))


def _backdrop(pen: ImageDraw.ImageDraw, place: Place, horizon: float, rng: np.random.Generator) -> None:
    """Draw the details of a place behind its things, in no colour that a caption names."""
    base = horizon * _TALL
    spots = rng.random((12, 3))
    if place.where == "in the night sky":
        for x, y, size in spots:
            radius = 1 + size * _SUPERSAMPLE
            x, y = x * _TALL, y * base
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(150, 156, 180))
    elif place.where == "in town":
        for x, height, width in spots[:5]:
            left, top = x * _TALL, base - (0.15 + 0.3 * height) * _TALL
            pen.rectangle((left, top, left + (0.08 + 0.1 * width) * _TALL, base), fill=(186, 190, 196))
    elif place.where == "on the kitchen table":
        for k in range(1, 6):
            x = (k + 0.3 * spots[0, 0]) * _TALL / 6
            pen.line((x, 0, x, base), fill=(212, 200, 186), width=_SUPERSAMPLE)
    elif place.where == "in the meadow":
        for x, width, height in spots[:3]:
            left, wide, tall = (x - 0.3) * _TALL, (0.4 + 0.4 * width) * _TALL, (0.05 + 0.12 * height) * _TALL
            pen.chord((left, base - tall, left + wide, base + tall), 180, 360, fill=(132, 176, 124))
    else:
        for x, y, width in spots[:4]:
            left, top, wide = x * _TALL, base - (0.02 + 0.2 * y) * _TALL, (0.06 + 0.1 * width) * _TALL
            pen.line((left, top, left + wide, top), fill=(176, 214, 230), width=_SUPERSAMPLE)
