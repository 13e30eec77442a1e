"""Draw the things of scenes: one function per kind, in one colour with a few neutral details.

A thing is drawn in the unit square (x to the right, y downwards) and stands on y = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (35, 35, 42)
GREY: Colour = (128, 130, 136)
PAPER: Colour = (244, 242, 234)
WOOD: Colour = (120, 82, 52)
GLASS: Colour = (196, 222, 232)


class Pen:
    """Draws in a square of the picture, in the colour of a thing.

    Args:
        draw: draws on the picture.
        left: left edge of the square, in pixels.
        top: top edge of the square, in pixels.
        side: side of the square, in pixels.
        colour: colour of the thing.
        line: width of outlines, in pixels.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float, side: float, colour: Colour, line: int):
        self._draw, self._left, self._top, self._side, self._line = draw, left, top, side, line
        self.colour = colour

    @property
    def shade(self) -> Colour:
        """A darker tone of the thing's colour."""
        red, green, blue = (round(0.72 * value) for value in self.colour)
        return red, green, blue

    def _at(self, points: Sequence[Point]) -> list[Point]:
        return [(self._left + x * self._side, self._top + y * self._side) for x, y in points]

    def polygon(self, *points: Point, fill: Colour | None = None) -> None:
        """Draw a filled polygon with an outline."""
        self._draw.polygon(self._at(points), fill=fill or self.colour, outline=INK, width=self._line)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour | None = None) -> None:
        """Draw a filled rectangle with an outline."""
        self._draw.rectangle(self._box(left, top, right, bottom), fill or self.colour, INK, self._line)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Colour | None = None) -> None:
        """Draw a filled ellipse with an outline."""
        self._draw.ellipse(self._box(left, top, right, bottom), fill or self.colour, INK, self._line)

    def half(self, left: float, top: float, right: float, bottom: float, fill: Colour | None = None) -> None:
        """Draw the upper half of an ellipse."""
        self._draw.pieslice(self._box(left, top, right, bottom), 180, 360, fill or self.colour, INK, self._line)

    def ring(self, left: float, top: float, right: float, bottom: float, width: float, fill: Colour) -> None:
        """Draw the rim of an ellipse, `width` wide."""
        self._draw.ellipse(self._box(left, top, right, bottom), None, fill, max(1, round(width * self._side)))

    def line(self, *points: Point, width: float = 0.04, fill: Colour = INK) -> None:
        """Draw a line through points."""
        self._draw.line(self._at(points), fill, max(1, round(width * self._side)), joint="curve")

    def _box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        (x0, y0), (x1, y1) = self._at([(left, top), (right, bottom)])
        return x0, y0, x1, y1


def _around(centre: Point, radius: float, corners: int, inner: float = 1.0) -> list[Point]:
    """Return the corners of a regular polygon from the top; every second one is at `inner` times the radius."""
    return [
        (
            centre[0] + radius * (inner if k % 2 else 1) * math.sin(2 * math.pi * k / corners),
            centre[1] - radius * (inner if k % 2 else 1) * math.cos(2 * math.pi * k / corners),
        )
        for k in range(corners)
    ]


def _boat(pen: Pen) -> None:
    pen.line((0.48, 0.05), (0.48, 0.75), width=0.05)
    pen.polygon((0.54, 0.08), (0.54, 0.64), (0.95, 0.64))
    pen.polygon((0.42, 0.18), (0.42, 0.64), (0.12, 0.64))
    pen.polygon((0.02, 0.72), (0.98, 0.72), (0.8, 1.0), (0.2, 1.0), fill=pen.shade)


def _umbrella(pen: Pen) -> None:
    pen.line((0.5, 0.3), (0.5, 1.0), width=0.05, fill=WOOD)
    pen.half(0.0, 0.05, 1.0, 1.0)
    pen.half(0.33, 0.05, 0.67, 1.0, fill=pen.shade)


def _ball(pen: Pen) -> None:
    pen.ellipse(0.08, 0.16, 0.92, 1.0)
    pen.ellipse(0.32, 0.16, 0.68, 1.0, fill=PAPER)
    pen.ellipse(0.44, 0.16, 0.56, 1.0)


def _bucket(pen: Pen) -> None:
    pen.ring(0.16, 0.05, 0.84, 0.75, 0.05, INK)
    pen.polygon((0.08, 0.4), (0.92, 0.4), (0.78, 1.0), (0.22, 1.0))
    pen.rectangle(0.04, 0.36, 0.96, 0.48, fill=pen.shade)


def _lighthouse(pen: Pen) -> None:
    pen.polygon((0.36, 0.24), (0.64, 0.24), (0.74, 1.0), (0.26, 1.0))
    pen.polygon((0.33, 0.46), (0.67, 0.46), (0.69, 0.6), (0.31, 0.6), fill=PAPER)
    pen.polygon((0.29, 0.76), (0.71, 0.76), (0.72, 0.87), (0.28, 0.87), fill=PAPER)
    pen.rectangle(0.38, 0.12, 0.62, 0.25, fill=GLASS)
    pen.polygon((0.34, 0.13), (0.66, 0.13), (0.5, 0.0), fill=INK)


def _crab(pen: Pen) -> None:
    for x, knee in ((0.25, 0.02), (0.36, 0.18), (0.75, 0.98), (0.64, 0.82)):
        pen.line((x, 0.72), (knee, 0.8), (knee, 1.0), width=0.06, fill=pen.shade)
    pen.line((0.24, 0.6), (0.12, 0.34), width=0.07, fill=pen.shade)
    pen.line((0.76, 0.6), (0.88, 0.34), width=0.07, fill=pen.shade)
    pen.ellipse(0.0, 0.1, 0.28, 0.38)
    pen.ellipse(0.72, 0.1, 1.0, 0.38)
    pen.ellipse(0.15, 0.44, 0.85, 0.92)
    pen.ellipse(0.34, 0.36, 0.46, 0.5, fill=PAPER)
    pen.ellipse(0.54, 0.36, 0.66, 0.5, fill=PAPER)


def _house(pen: Pen) -> None:
    pen.rectangle(0.1, 0.45, 0.9, 1.0)
    pen.polygon((0.0, 0.47), (0.5, 0.05), (1.0, 0.47), fill=GREY)
    pen.rectangle(0.56, 0.65, 0.76, 1.0, fill=WOOD)
    pen.rectangle(0.22, 0.6, 0.44, 0.8, fill=GLASS)


def _car(pen: Pen) -> None:
    pen.polygon((0.2, 0.58), (0.32, 0.32), (0.7, 0.32), (0.84, 0.58))
    pen.polygon((0.3, 0.56), (0.37, 0.39), (0.64, 0.39), (0.72, 0.56), fill=GLASS)
    pen.rectangle(0.0, 0.56, 1.0, 0.86)
    pen.ellipse(0.12, 0.7, 0.4, 1.0, fill=INK)
    pen.ellipse(0.6, 0.7, 0.88, 1.0, fill=INK)


def _bus(pen: Pen) -> None:
    pen.rectangle(0.0, 0.12, 1.0, 0.9)
    for left in (0.08, 0.31, 0.54, 0.77):
        pen.rectangle(left, 0.24, left + 0.16, 0.48, fill=GLASS)
    pen.rectangle(0.0, 0.58, 1.0, 0.66, fill=PAPER)
    pen.ellipse(0.12, 0.76, 0.36, 1.0, fill=INK)
    pen.ellipse(0.64, 0.76, 0.88, 1.0, fill=INK)


def _flag(pen: Pen) -> None:
    pen.rectangle(0.08, 0.0, 0.15, 1.0, fill=GREY)
    pen.polygon((0.15, 0.04), (0.96, 0.04), (0.8, 0.29), (0.96, 0.54), (0.15, 0.54))


def _bicycle(pen: Pen) -> None:
    for left in (0.0, 0.56):
        pen.ring(left, 0.56, left + 0.44, 1.0, 0.06, INK)
        pen.ellipse(left + 0.17, 0.73, left + 0.27, 0.83, fill=INK)
    pen.line((0.22, 0.78), (0.36, 0.42), (0.7, 0.42), (0.5, 0.78), (0.22, 0.78), width=0.1, fill=pen.colour)
    pen.line((0.5, 0.78), (0.34, 0.34), width=0.1, fill=pen.colour)
    pen.line((0.78, 0.78), (0.68, 0.26), width=0.1, fill=pen.colour)
    pen.line((0.26, 0.33), (0.44, 0.33), width=0.07)
    pen.line((0.58, 0.24), (0.8, 0.24), width=0.06)


def _tree(pen: Pen) -> None:
    pen.rectangle(0.42, 0.6, 0.58, 1.0, fill=WOOD)
    pen.ellipse(0.02, 0.26, 0.56, 0.74)
    pen.ellipse(0.44, 0.26, 0.98, 0.74)
    pen.ellipse(0.2, 0.0, 0.8, 0.56)


def _moon(pen: Pen) -> None:
    # A disc minus a smaller one to its right: along one rim, and back along the other.
    pen.polygon(*_arc((0.5, 0.5), 0.5, 56.3, 303.7), *_arc((0.72, 0.5), 0.42, 277.8, 82.2))


def _arc(centre: Point, radius: float, first: float, last: float, steps: int = 24) -> list[Point]:
    """Return points of a circle between two angles, in degrees clockwise from the right."""
    angles = [math.radians(first + (last - first) * k / steps) for k in range(steps + 1)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _star(pen: Pen) -> None:
    pen.polygon(*_around((0.5, 0.54), 0.54, 10, inner=0.45))


def _rocket(pen: Pen) -> None:
    pen.polygon((0.36, 0.86), (0.64, 0.86), (0.5, 1.0), fill=PAPER)
    pen.polygon((0.32, 0.5), (0.08, 0.88), (0.34, 0.8), fill=pen.shade)
    pen.polygon((0.68, 0.5), (0.92, 0.88), (0.66, 0.8), fill=pen.shade)
    pen.polygon((0.5, 0.0), (0.68, 0.24), (0.7, 0.86), (0.3, 0.86), (0.32, 0.24))
    pen.ellipse(0.41, 0.3, 0.59, 0.48, fill=GLASS)


def _balloon(pen: Pen) -> None:
    pen.line((0.22, 0.5), (0.42, 0.84), width=0.04, fill=GREY)
    pen.line((0.78, 0.5), (0.58, 0.84), width=0.04, fill=GREY)
    pen.ellipse(0.1, 0.0, 0.9, 0.74)
    pen.ellipse(0.36, 0.0, 0.64, 0.74, fill=pen.shade)
    pen.rectangle(0.38, 0.82, 0.62, 1.0, fill=WOOD)


def _kite(pen: Pen) -> None:
    pen.line((0.5, 0.66), (0.62, 0.8), (0.42, 0.88), (0.56, 1.0), width=0.05, fill=PAPER)
    pen.polygon((0.5, 0.0), (0.9, 0.28), (0.5, 0.74), (0.1, 0.28))
    pen.line((0.5, 0.0), (0.5, 0.74), width=0.04)
    pen.line((0.1, 0.28), (0.9, 0.28), width=0.04)


def _planet(pen: Pen) -> None:
    pen.ellipse(0.18, 0.18, 0.82, 0.82)
    pen.ring(0.0, 0.4, 1.0, 0.64, 0.06, GREY)
    pen.half(0.18, 0.18, 0.82, 0.82)


def _cup(pen: Pen) -> None:
    pen.ring(0.6, 0.36, 0.98, 0.76, 0.09, pen.shade)
    pen.ellipse(0.0, 0.86, 0.9, 1.0, fill=PAPER)
    pen.polygon((0.1, 0.24), (0.78, 0.24), (0.68, 0.94), (0.2, 0.94))
    pen.ellipse(0.1, 0.16, 0.78, 0.32, fill=WOOD)


def _bottle(pen: Pen) -> None:
    pen.rectangle(0.41, 0.0, 0.59, 0.1, fill=WOOD)
    pen.polygon(
        (0.42, 0.08), (0.58, 0.08), (0.58, 0.28), (0.72, 0.42), (0.72, 1.0), (0.28, 1.0), (0.28, 0.42), (0.42, 0.28)
    )
    pen.rectangle(0.28, 0.56, 0.72, 0.82, fill=PAPER)


def _apple(pen: Pen) -> None:
    pen.ellipse(0.08, 0.24, 0.92, 1.0)
    pen.line((0.5, 0.3), (0.54, 0.04), width=0.06, fill=WOOD)
    pen.ellipse(0.56, 0.06, 0.84, 0.2, fill=WOOD)


def _cake(pen: Pen) -> None:
    pen.rectangle(0.04, 0.66, 0.96, 1.0)
    pen.rectangle(0.18, 0.36, 0.82, 0.66, fill=pen.shade)
    for left in (0.04, 0.27, 0.5, 0.73):
        pen.ellipse(left, 0.58, left + 0.23, 0.76, fill=PAPER)
    for x in (0.34, 0.5, 0.66):
        pen.line((x, 0.14), (x, 0.36), width=0.05, fill=PAPER)


def _candle(pen: Pen) -> None:
    pen.polygon((0.5, 0.0), (0.6, 0.18), (0.5, 0.28), (0.4, 0.18), fill=PAPER)
    pen.rectangle(0.36, 0.3, 0.64, 0.92)
    pen.ellipse(0.1, 0.84, 0.9, 1.0, fill=GREY)


def _teapot(pen: Pen) -> None:
    pen.ring(0.66, 0.38, 1.0, 0.8, 0.08, pen.shade)
    pen.polygon((0.22, 0.84), (0.0, 0.42), (0.12, 0.38), (0.32, 0.6), fill=pen.shade)
    pen.ellipse(0.16, 0.34, 0.82, 1.0)
    pen.half(0.32, 0.24, 0.66, 0.5, fill=pen.shade)
    pen.ellipse(0.43, 0.12, 0.55, 0.26)


def _flower(pen: Pen) -> None:
    pen.line((0.5, 0.5), (0.5, 1.0), width=0.06, fill=WOOD)
    for x, y in _around((0.5, 0.36), 0.24, 6):
        pen.ellipse(x - 0.17, y - 0.17, x + 0.17, y + 0.17)
    pen.ellipse(0.36, 0.22, 0.64, 0.5, fill=INK)


def _mushroom(pen: Pen) -> None:
    pen.polygon((0.38, 0.5), (0.62, 0.5), (0.68, 1.0), (0.32, 1.0), fill=PAPER)
    pen.half(0.0, 0.06, 1.0, 1.1)
    pen.ellipse(0.18, 0.3, 0.34, 0.44, fill=PAPER)
    pen.ellipse(0.44, 0.16, 0.6, 0.3, fill=PAPER)
    pen.ellipse(0.68, 0.34, 0.82, 0.48, fill=PAPER)


def _tent(pen: Pen) -> None:
    pen.polygon((0.5, 0.15), (0.0, 1.0), (1.0, 1.0))
    pen.polygon((0.5, 0.42), (0.3, 1.0), (0.7, 1.0), fill=INK)


def _butterfly(pen: Pen) -> None:
    pen.ellipse(0.0, 0.08, 0.48, 0.58)
    pen.ellipse(0.52, 0.08, 1.0, 0.58)
    pen.ellipse(0.1, 0.52, 0.48, 0.92, fill=pen.shade)
    pen.ellipse(0.52, 0.52, 0.9, 0.92, fill=pen.shade)
    pen.ellipse(0.44, 0.14, 0.56, 0.9, fill=INK)
    pen.line((0.5, 0.2), (0.36, 0.0), width=0.04)
    pen.line((0.5, 0.2), (0.64, 0.0), width=0.04)


def _bird(pen: Pen) -> None:
    pen.line((0.42, 0.8), (0.42, 1.0), width=0.04)
    pen.line((0.56, 0.8), (0.56, 1.0), width=0.04)
    pen.polygon((0.2, 0.5), (0.0, 0.28), (0.02, 0.62), fill=pen.shade)
    pen.polygon((0.86, 0.24), (1.0, 0.32), (0.86, 0.38), fill=WOOD)
    pen.ellipse(0.1, 0.36, 0.8, 0.86)
    pen.ellipse(0.56, 0.1, 0.92, 0.48)
    pen.ellipse(0.26, 0.48, 0.6, 0.72, fill=pen.shade)


THINGS: dict[str, Callable[[Pen], None]] = {
    "boat": _boat,
    "umbrella": _umbrella,
    "ball": _ball,
    "bucket": _bucket,
    "lighthouse": _lighthouse,
    "crab": _crab,
    "house": _house,
    "car": _car,
    "bus": _bus,
    "flag": _flag,
    "bicycle": _bicycle,
    "tree": _tree,
    "moon": _moon,
    "star": _star,
    "rocket": _rocket,
    "balloon": _balloon,
    "kite": _kite,
    "planet": _planet,
    "cup": _cup,
    "bottle": _bottle,
    "apple": _apple,
    "cake": _cake,
    "candle": _candle,
    "teapot": _teapot,
    "flower": _flower,
    "mushroom": _mushroom,
    "tent": _tent,
    "butterfly": _butterfly,
    "bird": _bird,
}
