"""Pictures and captions -> a model's input tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from pipeline.models.base import Checkpoint, ImageProcessor

Tokens = list[int]


@dataclass(frozen=True)
class Batch:
    """Pictures, or their features, with one or more captions each.

    Attributes:
        pixel_values: `(pictures, 3, height, width)`, normalised; None if `features` are present.
        input_ids: `(captions, length)`, padded at the end.
        attention_mask: `(captions, length)`, 1 on tokens.
        picture_of: `(captions,)`, the index of each caption's picture.
        features: `(pictures, image_tokens, width)`, the image encoder's output.
        labels: `(captions, length)`, the tokens to predict if they differ from `input_ids`.
    """

    pixel_values: torch.Tensor | None
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    picture_of: torch.Tensor
    features: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device; the CPU does not wait for a copy from pinned memory to a GPU."""
        asynchronous = device.type == "cuda"  # from memory that is not pinned CUDA copies synchronously all the same
        moved = {k: v.to(device, non_blocking=asynchronous) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)

    def pinned(self) -> Batch:
        """Return a copy of the batch in pinned memory, which needs a GPU."""
        return replace(self, **{k: v.pin_memory() for k, v in vars(self).items() if v is not None})


def resize_and_crop(processor: ImageProcessor, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return pictures at the size that the image processor defines: `(pictures, 3, height, width)` uint8."""
    resized = processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")
    return resized["pixel_values"].to(torch.uint8)  # type: ignore[no-any-return]


def normalize(processor: ImageProcessor, pictures: torch.Tensor) -> torch.Tensor:
    """Scale resized uint8 pictures and normalise them with the image processor's mean and standard deviation."""
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    return (pictures.float() * processor.rescale_factor - mean) / std


def caption_tokens(checkpoint: Checkpoint, captions: Iterable[Sequence[str]], max_tokens: int) -> list[list[Tokens]]:
    """Return the tokens of each picture's captions, begin and end marks included, truncated to `max_tokens`."""
    return [
        checkpoint.tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"] for texts in captions
    ]


def collate(checkpoint: Checkpoint, pictures: torch.Tensor, captions: Sequence[Sequence[Tokens]]) -> Batch:
    """Return pictures and the tokens of their captions as a batch.

    Args:
        checkpoint: defines padding and normalisation.
        pictures: `(pictures, 3, height, width)` uint8; or features in floating point, see `Batch`.
        captions: one or more for each picture.
    """
    rows = [(picture, tokens) for picture, texts in enumerate(captions) for tokens in texts]
    size = (len(rows), max(len(tokens) for _, tokens in rows))
    input_ids = torch.full(size, checkpoint.tokenizer.pad_token_id)
    attention_mask = torch.zeros(size, dtype=torch.long)
    for k, (_, tokens) in enumerate(rows):
        input_ids[k, : len(tokens)] = torch.tensor(tokens)
        attention_mask[k, : len(tokens)] = 1
    encoded = pictures.dtype.is_floating_point
    return Batch(
        pixel_values=None if encoded else normalize(checkpoint.image_processor, pictures),
        input_ids=input_ids,
        attention_mask=attention_mask,
        picture_of=torch.tensor([picture for picture, _ in rows]),
        features=pictures if encoded else None,
    )
