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
    """Pictures and one or more captions of each.

    Attributes:
        pixel_values: `(pictures, 3, height, width)`, normalised as the checkpoint wants it.
        input_ids: `(captions, length)`, padded at the end.
        attention_mask: `(captions, length)`, 1 on tokens.
        picture_of: `(captions,)`, the index of each caption's picture.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    picture_of: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = (self.pixel_values, self.input_ids, self.attention_mask, self.picture_of)
        return Batch(*(tensor.to(device) for tensor in moved))


Tokens = list[int]


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


class CaptionedPictures(Dataset[tuple[torch.Tensor, Sequence[Tokens]]]):
    """Pictures with the tokens of some of their captions."""

    def __init__(self, pictures: Pictures, captioned: Sequence[tuple[int, Sequence[Tokens]]]) -> None:
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


def epoch_captions(tokens: Sequence[Sequence[Tokens]], seed: int, epoch: int) -> list[tuple[int, list[Tokens]]]:
    """An epoch of training: every picture once, shuffled, with one of its captions drawn."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(tokens)).tolist()
    return [(i, [tokens[i][int(rng.integers(len(tokens[i])))]]) for i in order]


def batches(
    checkpoint: Checkpoint, pictures: Pictures, captioned: Sequence[tuple[int, Sequence[Tokens]]], batch_size: int
) -> DataLoader:
    """A loader of pictures (by index) with captions, in the given order, `batch_size` pictures at a time."""
    padding = checkpoint.tokenizer.pad_token_id
    processor = checkpoint.image_processor

    def collate(items: Sequence[tuple[torch.Tensor, Sequence[Tokens]]]) -> Batch:
        captions = [(row, tokens) for row, (_, of_it) in enumerate(items) for tokens in of_it]
        length = max(len(tokens) for _, tokens in captions)
        input_ids = torch.full((len(captions), length), padding)
        attention_mask = torch.zeros((len(captions), length), dtype=torch.long)
        for k, (_, tokens) in enumerate(captions):
            input_ids[k, : len(tokens)] = torch.tensor(tokens)
            attention_mask[k, : len(tokens)] = 1
        return Batch(
            pixel_values=pixel_values(processor, torch.stack([picture for picture, _ in items])),
            input_ids=input_ids,
            attention_mask=attention_mask,
            picture_of=torch.tensor([row for row, _ in captions]),
        )

    return DataLoader(CaptionedPictures(pictures, captioned), batch_size=batch_size, collate_fn=collate)
