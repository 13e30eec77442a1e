"""Draws the sample: small scenes of one or two things, each with one to five captions of it.

    python -m pipeline.data.scenes data/raw/sample

writes `images.zip` and `captions.csv`, in the layout in which people bring their own pictures. The same
seed and the same Pillow give the same bytes. A few faults of the kind that real archives have are put in
on purpose, so that the account which ingest gives is seen at work: see `FAULTS`.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PICTURES = 1000
SEED = 20
SIDE = 96  # pixels, of the square picture
SUPERSAMPLE = 4  # drawn this many times larger and reduced, for smooth edges

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (250, 215, 50),
    "green": (40, 160, 75),
    "blue": (45, 95, 215),
    "purple": (140, 65, 185),
    "white": (248, 248, 246),
}

# Place -> the colours at the top and at the bottom of the picture.
PLACES: dict[str, tuple[Colour, Colour]] = {
    "in the sky": ((135, 190, 235), (205, 228, 245)),
    "on the grass": ((150, 195, 110), (105, 150, 80)),
    "on the sand": ((235, 215, 170), (205, 175, 125)),
    "at night": ((18, 22, 48), (45, 48, 85)),
}

SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.30), "big": (0.44, 0.49)}  # of the side


def _regular(box: Box, corners: int, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """The corners of a regular polygon in `box`, or of a star where `inner` gives the inner radius."""
    x, y, radius = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2
    steps = corners * (2 if inner else 1)
    points = []
    for k in range(steps):
        r = radius * inner if inner and k % 2 else radius
        angle = turn + 2 * math.pi * k / steps
        points.append((x + r * math.sin(angle), y - r * math.cos(angle)))
    return points


def _circle(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    draw.ellipse(box, fill=colour)


def _square(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    draw.rectangle(box, fill=colour)


def _triangle(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    draw.polygon(_regular(box, 3, 0), fill=colour)


def _star(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    draw.polygon(_regular(box, 5, 0, inner=0.42), fill=colour)


def _ring(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    draw.ellipse(box, outline=colour, width=round((box[2] - box[0]) * 0.2))


def _cross(draw: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
    third = (box[2] - box[0]) / 3
    draw.rectangle((box[0] + third, box[1], box[2] - third, box[3]), fill=colour)
    draw.rectangle((box[0], box[1] + third, box[2], box[3] - third), fill=colour)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, Box, Colour], None]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}


@dataclass(frozen=True)
class Thing:
    """One drawn thing: its size, colour and shape by name, and its box in pixels of the picture."""

    size: str
    colour: str
    shape: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A place and the one or two things in it; two things stand beside each other, the left one first."""

    place: str
    things: tuple[Thing, ...]


def random_scene(rng: random.Random) -> Scene:
    """A scene drawn from `rng`: a third of the scenes have two things."""
    place = rng.choice(list(PLACES))
    halves = [(0.0, 0.5), (0.5, 1.0)] if rng.random() < 1 / 4 else [(0.0, 1.0)]
    things = []
    for left, right in halves:
        size = rng.choice(list(SIZES))
        side = rng.uniform(*SIZES[size]) * SIDE
        x = rng.uniform(left * SIDE + 1, right * SIDE - side - 1)
        y = rng.uniform(1, SIDE - side - 1)
        colour = rng.choice(list(COLOURS))
        things.append(Thing(size, colour, rng.choice(list(SHAPES)), (x, y, x + side, y + side)))
    return Scene(place, tuple(things))


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB picture, `SIDE` pixels square; `rng` gives light and grain."""
    top, bottom = (np.array(c, dtype=np.float32) for c in PLACES[scene.place])
    rows = np.linspace(0, 1, SIDE * SUPERSAMPLE, dtype=np.float32)[:, None, None]
    light = 1 + rng.uniform(-0.25, 0.25)
    ground = np.clip((top + (bottom - top) * rows) * light, 0, 255).astype(np.uint8)
    page = Image.fromarray(np.broadcast_to(ground, (SIDE * SUPERSAMPLE, SIDE * SUPERSAMPLE, 3)).copy())
    pen = ImageDraw.Draw(page)
    for thing in scene.things:
        box = tuple(v * SUPERSAMPLE for v in thing.box)
        red, green, blue = (int(np.clip(v * light, 0, 255)) for v in COLOURS[thing.colour])
        SHAPES[thing.shape](pen, box, (red, green, blue))  # type: ignore[arg-type]
    small = np.asarray(page.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    grain = rng.normal(0, 2.5, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(small + grain, 0, 255).astype(np.uint8))


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """One to five different captions of the scene, in the words of different people."""
    names = [f"{t.size} {t.colour} {t.shape}" for t in scene.things]
    short = [f"{t.colour} {t.shape}" for t in scene.things]
    if len(scene.things) == 1:
        said = [
            f"A {names[0]} {scene.place}.",
            f"a {names[0]} {scene.place}",
            f"A {short[0]} {scene.place}",
            f"there is a {names[0]} {scene.place}",
            f"{names[0]}, {scene.place}!",
        ]
    else:
        said = [
            f"A {names[0]} and a {names[1]} {scene.place}.",
            f"a {names[0]} beside a {names[1]} {scene.place}",
            f"A {short[0]} and a {short[1]} {scene.place}",
            f"there is a {names[0]} and a {names[1]} {scene.place}",
            f"{names[0]} left of a {names[1]}, {scene.place}!",
        ]
    return rng.sample(said, rng.randint(1, len(said)))


FAULTS = """
* a caption that is empty, and one of white space only
* the same caption twice for one picture
* a caption whose picture is not in the zip
* a row with too few fields
* a picture with no caption
* the same picture under two names
* a picture cut off in the middle, and a text file under a picture's name
* a folder of resource forks and a Thumbs.db, as some systems leave in their zips
"""


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_sample(folder: Path, pictures: int = PICTURES, seed: int = SEED) -> None:
    """Write `images.zip` (`pictures` drawn scenes and the faults) and `captions.csv` to `folder`."""
    rng, grain = random.Random(seed), np.random.default_rng(seed)
    files: dict[str, bytes] = {}
    rows: list[list[str]] = []
    for k in range(pictures):
        scene = random_scene(rng)
        name = f"scene-{k:04d}.jpg"
        files[name] = _jpeg(draw(scene, grain))
        rows += [[name, caption] for caption in captions(scene, rng)]

    last = f"scene-{pictures - 1:04d}.jpg"
    rows[3][1], rows[17][1] = "", "   "
    rows.insert(11, rows[10])
    rows.append(["scene-lost.jpg", "A picture that nobody put into the zip."])
    rows.append(["scene-0005.jpg"])
    files["scene-nameless.jpg"] = _jpeg(draw(random_scene(rng), grain))
    files["scene-0000 (copy).jpg"] = files["scene-0000.jpg"]
    rows.append(["scene-0000 (copy).jpg", "the first scene, once more"])
    files["scene-cut.jpg"] = files[last][: len(files[last]) // 2]
    rows.append(["scene-cut.jpg", "Half of a picture."])
    files["scene-text.jpg"] = b"This is a note and no picture.\n"
    rows.append(["scene-text.jpg", "A note."])
    files["__MACOSX/._scene-0000.jpg"] = b"\0\5\26\7" + bytes(60)
    files["Thumbs.db"] = bytes(512)

    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(2024, 1, 1, 0, 0, 0)), data)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        writer.writerows(rows)


def main() -> None:
    """Command line: draw the sample into a folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.data.scenes", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where images.zip and captions.csv are written")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the drawing (default: %(default)s)")
    args = parser.parse_args()
    write_sample(args.folder, args.pictures, args.seed)
    size = (args.folder / "images.zip").stat().st_size / 1e6
    print(f"{args.pictures} pictures ({size:.1f} MB) and their captions are in {args.folder}")


if __name__ == "__main__":
    main()
