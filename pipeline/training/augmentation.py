"""Training pictures changed at random: a smaller square, other colours, mirrored.

What becomes of a picture follows from the seed, the epoch and the picture's number alone, so a training that was cut
off sees the same pictures when it goes on.
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
    """The pictures of a split as an epoch sees them, `(3, height, width)` uint8.

    Args:
        pictures: of the split.
        examples: of the split; a picture of which a caption says left or right is not mirrored.
        settings: how much is changed.
        seed: of the training.
        epoch: its number.
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
        return self._pictures.cropped(changed(self._pictures.opened(index), self._settings, may_mirror, rng))


def changed(image: Image.Image, settings: Augmentation, may_mirror: bool, rng: np.random.Generator) -> Image.Image:
    """A picture changed at random: an RGB square."""
    side = round(min(image.size) * (1 - settings.crop * rng.random()))
    left, top = (int(rng.integers(0, length - side, endpoint=True)) for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    for kind in _COLOURS if settings.colour else ():
        image = kind(image).enhance(1 + settings.colour * rng.uniform(-1, 1))
    if settings.mirror and rng.random() < 0.5 and may_mirror:
        image = ImageOps.mirror(image)
    return image
