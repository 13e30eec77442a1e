"""Examples of the data set -> batches of tensors.

An epoch's order of pictures and its draw of captions follow from the seed and the epoch's number alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.data.dataset import Example, PictureReader
from pipeline.models.git.checkpoint import Checkpoint


@dataclass(frozen=True)
class Batch:
    """Pictures and one or more captions of each.

    Attributes:
        pixel_values: `(pictures, 3, height, width)`, normalised as the checkpoint wants it; None where `features` are.
        input_ids: `(captions, length)`, padded at the end.
        attention_mask: `(captions, length)`, 1 on tokens.
        picture_of: `(captions,)`, the index of each caption's picture.
        features: `(pictures, image_tokens, vision_hidden)`, what a frozen image encoder made of the pictures.
        labels: `(captions, length)`, the tokens to predict, where these are others than those read.
    """

    pixel_values: torch.Tensor | None
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    picture_of: torch.Tensor
    features: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


Tokens = list[int]
Captioned = tuple[int, Sequence[Tokens]]  # the index of a picture, and the tokens of captions of it


class Pictures(Dataset[torch.Tensor]):
    """The pictures of a split as the checkpoint wants them, `(3, height, width)` uint8.

    Resizing and cropping are done once a picture where all of them fit into `memory` bytes, else each time.
    """

    def __init__(self, examples: Sequence[Example], reader: PictureReader, checkpoint: Checkpoint, memory: int = 2**30):
        self._names = [example.file_name for example in examples]
        self._reader = reader
        self._processor = checkpoint.image_processor
        side = checkpoint.image_size
        self._kept: dict[int, torch.Tensor] | None = {} if len(examples) * 3 * side * side <= memory else None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        made = self.cropped(self.opened(index))
        if self._kept is not None:
            self._kept[index] = made
        return made

    def opened(self, index: int) -> Image.Image:
        """A picture as it is in the data set, RGB."""
        with Image.open(io.BytesIO(self._reader.read(self._names[index]))) as image:
            return image.convert("RGB")

    def cropped(self, image: Image.Image) -> torch.Tensor:
        """A picture resized and cropped as the checkpoint wants it."""
        return cropped(self._processor, [image])[0]

    def sha256(self, index: int) -> str:
        """Of the picture's bytes as they are in the data set, hexadecimal."""
        return hashlib.sha256(self._reader.read(self._names[index])).hexdigest()


def cropped(processor: object, images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures resized and cropped as the checkpoint's image processor says: `(pictures, 3, h, w)` uint8."""
    made = processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")  # type: ignore[operator]
    return made["pixel_values"].to(torch.uint8)  # type: ignore[no-any-return]


def pixel_values(processor: object, pictures: torch.Tensor) -> torch.Tensor:
    """Resized uint8 pictures -> what the model takes: scaled, and normalised with the checkpoint's mean and spread."""
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)  # type: ignore[attr-defined]
    std = torch.tensor(processor.image_std).view(1, 3, 1, 1)  # type: ignore[attr-defined]
    scale: float = processor.rescale_factor  # type: ignore[attr-defined]
    return (pictures.float() * scale - mean) / std


class CaptionedPictures(Dataset[tuple[torch.Tensor, Sequence[Tokens]]]):
    """Pictures, or their features, with the tokens of some of their captions."""

    def __init__(self, pictures: Dataset[torch.Tensor], captioned: Sequence[Captioned]) -> None:
        self._pictures = pictures
        self._captioned = captioned

    def __len__(self) -> int:
        return len(self._captioned)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Sequence[Tokens]]:
        picture, captions = self._captioned[index]
        return self._pictures[picture], captions


def tokenize(checkpoint: Checkpoint, examples: Iterable[Example], max_tokens: int) -> list[list[Tokens]]:
    """The tokens of every caption of every example, begin and end marks included, cut to `max_tokens`."""
    return [
        checkpoint.tokenizer(example.captions, truncation=True, max_length=max_tokens)["input_ids"]
        for example in examples
    ]


def epoch_captions(
    tokens: Sequence[Sequence[Tokens]], seed: int, epoch: int, each: int | None = None
) -> list[tuple[int, list[Tokens]]]:
    """An epoch of training: every picture once, shuffled, with `each` of its captions drawn; all where it is None."""
    rng = np.random.default_rng((seed, epoch))
    drawn = []
    for i in rng.permutation(len(tokens)).tolist():
        chosen = rng.permutation(len(tokens[i]))[:each].tolist()
        drawn.append((i, [tokens[i][k] for k in chosen]))
    return drawn


def batches(
    checkpoint: Checkpoint, pictures: Dataset[torch.Tensor], groups: Sequence[Sequence[Captioned]]
) -> DataLoader:
    """A loader of `Pictures` or `Features` with captions: a batch a group, in the given order."""

    def together(items: Sequence[tuple[torch.Tensor, Sequence[Tokens]]]) -> Batch:
        return collate(checkpoint, torch.stack([picture for picture, _ in items]), [of_it for _, of_it in items])

    # A loader draws a seed whenever it is begun; from torch's own generator that would change the dropout after it.
    own = torch.Generator()
    ends = list(accumulate(len(group) for group in groups))
    places = [list(range(end - len(group), end)) for end, group in zip(ends, groups, strict=True)]
    flat = CaptionedPictures(pictures, [item for group in groups for item in group])
    return DataLoader(flat, batch_sampler=places, collate_fn=together, generator=own)


def groups_of(items: Sequence[Captioned], size: int) -> list[Sequence[Captioned]]:
    """So many at a time; the last may be fewer."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def collate(checkpoint: Checkpoint, pictures: torch.Tensor, captions: Sequence[Sequence[Tokens]]) -> Batch:
    """Pictures and the tokens of each one's captions -> a batch.

    Args:
        checkpoint: whose padding and preprocessing are used.
        pictures: `(pictures, 3, height, width)` uint8; or features of pictures, in floating point, see `Batch`.
        captions: one or more of each picture.
    """
    rows = [(picture, tokens) for picture, of_it in enumerate(captions) for tokens in of_it]
    size = (len(rows), max(len(tokens) for _, tokens in rows))
    input_ids = torch.full(size, checkpoint.tokenizer.pad_token_id)
    attention_mask = torch.zeros(size, dtype=torch.long)
    for k, (_, tokens) in enumerate(rows):
        input_ids[k, : len(tokens)] = torch.tensor(tokens)
        attention_mask[k, : len(tokens)] = 1
    encoded = pictures.dtype.is_floating_point
    return Batch(
        pixel_values=None if encoded else pixel_values(checkpoint.image_processor, pictures),
        input_ids=input_ids,
        attention_mask=attention_mask,
        picture_of=torch.tensor([picture for picture, _ in rows]),
        features=pictures if encoded else None,
    )


def misread(batch: Batch, part: float, seed: Sequence[int]) -> Batch:
    """A part of the words is read as what another caption of the batch has in their place; targets stay.

    A model that has never seen a red boat learns from the words alone that no boat follows "red". Where words
    can't be trusted it has to look instead. (Compare word dropout: Bowman et al. 2016, "Generating sentences from a
    continuous space".)

    Args:
        batch: whose captions are changed.
        part: of the words, from 0 to 1.
        seed: decides which.
    """
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(batch.input_ids)))
    swapped = torch.from_numpy(rng.random(batch.input_ids.shape) < part)
    swapped &= (batch.attention_mask & batch.attention_mask[order]).bool()
    read = torch.where(swapped, batch.input_ids[order], batch.input_ids)
    return replace(batch, input_ids=read, labels=batch.input_ids)
