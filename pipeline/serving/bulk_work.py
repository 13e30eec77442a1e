"""The part of bulk captioning that may run in another process: from raw bytes to captions, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.data.images import PictureError, identity, opened
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget, return_large_blocks


@dataclass(frozen=True)
class NamedModel:
    """A model, and how to load it.

    Attributes:
        uri: its name in the output.
        load: loads it; with Ray it is pickled, and called in each worker.
    """

    uri: str
    load: Callable[[], Captioner]


@dataclass(frozen=True)
class Way:
    """How pictures are captioned; see `Captioner.scored`.

    Attributes:
        beams: width of beam search.
        several: the maximum number of different captions per picture.
        seed: random seed of the sampling if `several` is more than 1.
        diverse: whether several captions share few words.
        max_pixels: of a picture.
    """

    beams: int
    several: int
    seed: int
    diverse: bool
    max_pixels: int


@dataclass(frozen=True)
class Prepared:
    """A picture at the size of the model's input, `(3, height, width)` uint8, and the hash of its file."""

    sha256: str
    pixels: torch.Tensor


@dataclass(frozen=True)
class Captioned:
    """The captions of a picture, the likeliest first, and their scores; the hash of its file."""

    sha256: str
    captions: list[str]
    scores: list[float]


def prepare(captioner: Captioner, data: bytes, way: Way, budget: MemoryBudget) -> Prepared | str:
    """Return a picture, decoded under the memory budget, or why it can't be used."""
    try:
        with opened(data, way.max_pixels, budget, at_least=2 * captioner.image_size) as picture:
            return Prepared(identity(data), captioner.prepare(picture.decode()))
    except PictureError as error:
        return str(error)


def caption(captioner: Captioner, batch: Sequence[Prepared | str], way: Way) -> list[Captioned | str]:
    """Return the captions of each picture of a batch; what can't be used stays as it is."""
    readable = [one for one in batch if isinstance(one, Prepared)]
    if not readable:
        return [one for one in batch if isinstance(one, str)]
    scored = iter(
        captioner.scored(
            [picture.pixels for picture in readable],
            [way.seed] * len(readable),
            count=way.several,
            beams=way.beams,
            sampling=way.several > 1,
            diverse=way.diverse,
        )
    )

    def captioned(picture: Prepared) -> Captioned:
        captions = next(scored)
        return Captioned(picture.sha256, [one.text for one in captions], [one.score for one in captions])

    return [one if isinstance(one, str) else captioned(one) for one in batch]


@dataclass(frozen=True)
class Captioning:
    """Makes the work of Ray's workers; it can be pickled.

    Attributes:
        load: see `NamedModel`.
        way: how pictures are captioned.
        memory: bytes for decoded pictures in each worker.
    """

    load: Callable[[], Captioner]
    way: Way
    memory: int

    def __call__(self) -> Callable[[Sequence[bytes]], list[Captioned | str]]:
        """Return the work: raw bytes of a batch -> captions, or why a picture can't be used."""
        return_large_blocks()
        captioner, budget = self.load(), MemoryBudget(self.memory)
        return lambda batch: caption(
            captioner, [prepare(captioner, data, self.way, budget) for data in batch], self.way
        )
