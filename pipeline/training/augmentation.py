"""Random augmentation of training pictures: crop, colour, mirror.

The result depends only on the seed, the epoch and the picture's index, so a resumed training sees the same pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset

from pipeline.config.sections.finetune import Augmentation
from pipeline.data.dataset import Example
from pipeline.training.loader import Pictures

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_COLOURS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Augmented(Dataset[torch.Tensor]):
    """The augmented pictures of a split in one epoch, `(3, height, width)` uint8.

    Args:
        pictures: the split's pictures.
        examples: the split's examples; a picture is not mirrored if a caption says left or right.
        settings: strength of each change.
        seed: the training's seed.
        epoch: the epoch's number.
    """

    def __init__(
        self, pictures: Pictures, examples: Sequence[Example], settings: Augmentation, seed: int, epoch: int
    ) -> None:
        self._pictures, self._examples, self._settings = pictures, examples, settings
        self._seed = (seed, epoch)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng((*self._seed, index))
        may_mirror = not any(_SIDES.search(caption) for caption in self._examples[index].captions)
        return self._pictures.resized(augment(self._pictures.opened(index), self._settings, may_mirror, rng))


def augment(image: Image.Image, settings: Augmentation, may_mirror: bool, rng: np.random.Generator) -> Image.Image:
    """Return a randomly changed picture: an RGB square."""
    side = round(min(image.size) * (1 - settings.crop * rng.random()))
    left, top = (int(rng.integers(0, length - side, endpoint=True)) for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    for kind in _COLOURS if settings.colour else ():
        image = kind(image).enhance(1 + settings.colour * rng.uniform(-1, 1))
    if settings.mirror and rng.random() < 0.5 and may_mirror:
        image = ImageOps.mirror(image)
    return image
