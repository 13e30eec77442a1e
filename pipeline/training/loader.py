"""Examples of the data set -> the batches of an epoch.

The order of pictures and the choice of captions depend only on the seed and the epoch's number.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pipeline.data.dataset import Example, PictureReader
from pipeline.models.base import Checkpoint
from pipeline.models.inputs import Batch, Tokens, collate, resize_and_crop
from pipeline.runtime.parallel_map import parallel_map

CaptionedPicture = tuple[int, Sequence[Tokens]]  # the index of a picture, and the tokens of some of its captions

_CPU = torch.device("cpu")
_AHEAD = 2  # batches that wait in pinned memory while a GPU computes


class Pictures(Dataset[torch.Tensor]):
    """The pictures of a split at the checkpoint's size, `(3, height, width)` uint8.

    Resized pictures are kept in memory if all of them fit into `memory` bytes.
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
        resized = self.resized(self.opened(index))
        if self._kept is not None:
            self._kept[index] = resized
        return resized

    def opened(self, index: int) -> Image.Image:
        """Return a picture as stored in the data set, RGB."""
        with Image.open(io.BytesIO(self._reader.read(self._names[index]))) as image:
            return image.convert("RGB")

    def resized(self, image: Image.Image) -> torch.Tensor:
        """Return a picture at the checkpoint's size, `(3, height, width)` uint8."""
        return resize_and_crop(self._processor, [image])[0]

    def sha256(self, index: int) -> str:
        """Return the SHA-256 of a picture's bytes in the data set, hexadecimal."""
        return hashlib.sha256(self._reader.read(self._names[index])).hexdigest()


def epoch_captions(
    tokens: Sequence[Sequence[Tokens]], seed: int, epoch: int, each: int | None = None
) -> list[tuple[int, list[Tokens]]]:
    """Return every picture once, in random order, with `each` of its captions chosen at random; None means all."""
    rng = np.random.default_rng((seed, epoch))
    captioned = []
    for i in rng.permutation(len(tokens)).tolist():
        chosen = rng.permutation(len(tokens[i]))[:each].tolist()
        captioned.append((i, [tokens[i][k] for k in chosen]))
    return captioned


def batches(
    checkpoint: Checkpoint,
    pictures: Dataset[torch.Tensor],
    groups: Sequence[Sequence[CaptionedPicture]],
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """Yield one batch per group in CPU memory, in the given order.

    Pictures are read, decoded and resized in threads, some batches ahead of the step that is computed. Worker processes
    would decode them in every epoch, because the pictures that `Pictures` keeps in memory are in this process.

    Args:
        checkpoint: defines padding and normalisation.
        pictures: pictures or their features.
        groups: the captioned pictures of each batch.
        device: where the batches will be copied to. For a CUDA GPU they are put together ahead too, in pinned memory,
            so that `Batch.to` neither waits for the copy nor for the CPU's work on the batch.
    """
    read = _read(pictures, groups)
    collated = (
        collate(checkpoint, torch.stack([*islice(read, len(group))]), [captions for _, captions in group])
        for group in groups
    )
    if device.type != "cuda":
        return collated
    pinned = (batch.pinned() for batch in collated)
    # Features that the GPU computes itself would compete with the step for its memory.
    return ahead(pinned) if getattr(pictures, "reads_ahead", True) else pinned


def ahead(made: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches of an iterator, which a thread runs some batches ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, made, None) for _ in range(_AHEAD))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, made, None))
            yield batch


def _read(pictures: Dataset[torch.Tensor], groups: Sequence[Sequence[CaptionedPicture]]) -> Iterator[torch.Tensor]:
    """Yield the pictures of all groups, or their features.

    Features that are not cached come from the model itself, which is busy with a step, so they are not read ahead.
    Those of a group are computed together.
    """
    if hasattr(pictures, "__getitems__"):
        return chain.from_iterable(pictures.__getitems__([index for index, _ in group]) for group in groups)
    return parallel_map(pictures.__getitem__, (index for group in groups for index, _ in group), threads=0)


def groups_of(items: Sequence[CaptionedPicture], size: int) -> list[Sequence[CaptionedPicture]]:
    """Split into groups of `size`; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def swap_words(batch: Batch, share: float, seed: Sequence[int]) -> Batch:
    """Replace a share of the input words by words of other captions at the same position.

    The tokens to predict do not change. A model that has never seen a red boat learns from captions alone that "boat"
    does not follow "red". If input words are unreliable, it must rely on the picture. (Compare word dropout: Bowman et
    al. 2016, "Generating sentences from a continuous space".)

    Args:
        batch: the captions.
        share: of the words, from 0 to 1.
        seed: decides which words.
    """
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(batch.input_ids)))
    swapped = torch.from_numpy(rng.random(batch.input_ids.shape) < share)
    swapped &= (batch.attention_mask & batch.attention_mask[order]).bool()
    read = torch.where(swapped, batch.input_ids[order], batch.input_ids)
    return replace(batch, input_ids=read, labels=batch.input_ids)
