from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.config.sections.finetune import Augmentation
from pipeline.data.dataset import Example, PictureReader, PictureWriter
from pipeline.training.augmentation import Augmented, augment
from pipeline.training.loader import Pictures
from tests.models.git.test_checkpoint import small

ALL = Augmentation(crop=0.3, colour=0.3, mirror=True)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def draws(image: Image.Image, settings: Augmentation, may_mirror: bool = True, count: int = 200) -> list[Image.Image]:
    return [augment(image, settings, may_mirror, np.random.default_rng(seed)) for seed in range(count)]


def test_crops_are_squares_of_allowed_size_anywhere(image: Image.Image) -> None:
    made = draws(image, Augmentation(crop=0.5, colour=0.0, mirror=False))
    assert all(square.width == square.height for square in made)
    sides = [square.width for square in made]
    assert min(sides) in range(30, 33)
    assert max(sides) in range(58, 61)
    pixels = np.asarray(image)
    corners = {tuple(np.asarray(square)[0, 0]) for square in made}
    assert len(corners) > 150  # they start in many places of the picture
    assert corners <= {tuple(colour) for colour in pixels.reshape(-1, 3)}


def test_colours_change_within_the_limit() -> None:
    grey = Image.new("RGB", (10, 10), (100, 100, 100))
    means = [np.asarray(made).mean() for made in draws(grey, Augmentation(crop=0.0, colour=0.2, mirror=False))]
    assert 79 <= min(means) < 85
    assert 115 < max(means) <= 121


def test_half_are_mirrored_unless_a_caption_says_left_or_right(image: Image.Image) -> None:
    square = image.crop((0, 0, 60, 60))
    only = Augmentation(crop=0.0, colour=0.0, mirror=True)
    mirrored = ImageOps.mirror(square).tobytes()
    made = [one.tobytes() for one in draws(square, only)]
    assert set(made) == {square.tobytes(), mirrored}
    assert 70 < made.count(mirrored) < 130
    assert {one.tobytes() for one in draws(square, only, may_mirror=False)} == {square.tobytes()}


def split(folder: Path, image: Image.Image, caption: str) -> tuple[Pictures, list[Example]]:
    """Return a split with the same picture twice."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with PictureWriter(folder) as writer:
        for k in range(2):
            writer.add(f"{k}.png", buffer.getvalue())
    examples = [Example(f"{k}.png", ["x", caption], "", [], []) for k in range(2)]
    return Pictures(examples, PictureReader(folder), small()), examples


def test_augmentation_depends_on_seed_epoch_and_index(tmp_path: Path, image: Image.Image) -> None:
    pictures, examples = split(tmp_path, image, "y")

    def seen(seed: int, epoch: int) -> list[torch.Tensor]:
        augmented = Augmented(pictures, examples, ALL, seed, epoch)
        return [augmented[k] for k in range(len(augmented))]

    first = seen(1, 1)
    assert first[0].shape == pictures[0].shape
    assert first[0].dtype == torch.uint8
    assert not torch.equal(first[0], first[1])  # the same picture, but another index
    assert all(torch.equal(a, b) for a, b in zip(first, seen(1, 1), strict=True))
    assert not torch.equal(first[0], seen(1, 2)[0])
    assert not torch.equal(first[0], seen(2, 1)[0])


@pytest.mark.parametrize(
    ("caption", "ways"),
    [("a dog", 2), ("a dog on the Left.", 1), ("RIGHT-handed", 1), ("bright light", 2)],
)
def test_captions_decide_whether_a_picture_is_mirrored(
    tmp_path: Path, image: Image.Image, caption: str, ways: int
) -> None:
    pictures, examples = split(tmp_path, image.crop((0, 0, 60, 60)), caption)
    only = Augmentation(crop=0.0, colour=0.0, mirror=True)
    seen = {tuple(Augmented(pictures, examples, only, 1, epoch)[0].flatten().tolist()) for epoch in range(20)}
    assert len(seen) == ways
