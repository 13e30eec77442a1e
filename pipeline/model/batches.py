"""Examples of the data set -> batches of tensors.

An epoch's order of pictures and its draw of captions follow from the seed and the epoch's number alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.data.records import Example, PictureReader
from pipeline.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Batch:
    """Captions and their pictures, row by row.

    Attributes:
        pixel_values: `(captions, 3, height, width)`, normalised as the checkpoint wants it.
        input_ids: `(captions, length)`, padded at the end.
        attention_mask: `(captions, length)`, 1 on tokens.

    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.pixel_values.to(device), self.input_ids.to(device), self.attention_mask.to(device))


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
        with Image.open(io.BytesIO(self._reader.read(self._names[index]))) as image:
            made = cropped(self._processor, [image.convert("RGB")])[0]
        if self._kept is not None:
            self._kept[index] = made
        return made


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


class CaptionedPictures(Dataset[tuple[torch.Tensor, list[int]]]):
    """Pairs of a picture and the tokens of one of its captions."""

    def __init__(self, pictures: Pictures, pairs: Sequence[tuple[int, list[int]]]) -> None:
        self._pictures = pictures
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[int]]:
        picture, tokens = self._pairs[index]
        return self._pictures[picture], tokens


def tokenize(checkpoint: Checkpoint, examples: Iterable[Example], max_tokens: int) -> list[list[list[int]]]:
    """The tokens of every caption of every example, begin and end marks included, cut to `max_tokens`."""
    return [
        checkpoint.tokenizer(example.captions, truncation=True, max_length=max_tokens)["input_ids"]
        for example in examples
    ]


def epoch_pairs(tokens: Sequence[Sequence[list[int]]], seed: int, epoch: int) -> list[tuple[int, list[int]]]:
    """An epoch of training: every picture once, shuffled, with one of its captions drawn."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(tokens)).tolist()
    return [(i, tokens[i][int(rng.integers(len(tokens[i])))]) for i in order]


def all_pairs(tokens: Sequence[Sequence[list[int]]]) -> list[tuple[int, list[int]]]:
    """Every picture with every one of its captions, in order."""
    return [(i, caption) for i, captions in enumerate(tokens) for caption in captions]


def batches(
    checkpoint: Checkpoint, pictures: Pictures, pairs: Sequence[tuple[int, list[int]]], batch_size: int
) -> DataLoader:
    """A loader of `pairs` (picture, tokens), in their order."""
    padding = checkpoint.tokenizer.pad_token_id
    processor = checkpoint.image_processor

    def collate(items: Sequence[tuple[torch.Tensor, list[int]]]) -> Batch:
        length = max(len(tokens) for _, tokens in items)
        input_ids = torch.full((len(items), length), padding)
        attention_mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, (_, tokens) in enumerate(items):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
        stacked = torch.stack([picture for picture, _ in items])
        return Batch(pixel_values(processor, stacked), input_ids, attention_mask)

    return DataLoader(CaptionedPictures(pictures, pairs), batch_size=batch_size, collate_fn=collate)
