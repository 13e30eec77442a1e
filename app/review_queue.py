"""The queue of *Review*: which pictures a person sees, and in which order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipeline.config import paths
from pipeline.data.dataset import Example, PictureReader, read_examples
from pipeline.data.sources.corrections import Correction, withdrawn_texts
from pipeline.data.split import SPLITS
from pipeline.data.text import clean
from pipeline.serving.corrections import Corrections

_BLIND_SHARE = 0.2  # of the pictures are shown without the model's words


@dataclass(frozen=True)
class Item:
    """A picture to review.

    Attributes:
        example: the picture with its captions; `sources` and `origins` are empty if it is not in the data set yet.
        split: its split; None if it is not in the data set yet.
        correction: a correction that has the picture; None if the data set has it.
    """

    example: Example
    split: str | None
    correction: Correction | None = None

    def picture(self, store: Corrections) -> bytes:
        """Return the picture as the data set stores it, or as it was uploaded."""
        if self.correction is not None:
            return store.picture(self.correction) or b""
        folder = paths.DATASET / str(self.split)
        return _reader(folder, _state(folder)).read(self.example.file_name)


def _state(folder: Path) -> tuple[int, int]:
    """Return what changes when `build` swaps in a new folder."""
    status = folder.stat()
    return status.st_ino, status.st_mtime_ns


# A click runs the whole page again; a large data set must not be read again each time.
@lru_cache(maxsize=2 * len(SPLITS))
def _examples(folder: Path, state: tuple[int, int]) -> list[Example]:
    return read_examples(folder)


@lru_cache(maxsize=2 * len(SPLITS))
def _reader(folder: Path, state: tuple[int, int]) -> PictureReader:
    return PictureReader(folder)


def all_items(found: Sequence[Correction]) -> list[Item]:
    """Return every picture of the data set, and of corrections that are not in it yet.

    Args:
        found: the corrections that count, in the order in which they were saved.
    """
    items: dict[str, Item] = {}
    for split in SPLITS:
        if (paths.DATASET / split).is_dir():
            folder = paths.DATASET / split
            items.update({e.sha256: Item(e, split) for e in _examples(folder, _state(folder))})
    for correction in found:
        if correction.picture is None or correction.caption is None:
            continue
        known = items.get(correction.sha256)
        if known is None:
            example = Example("", [correction.caption], correction.sha256, [], [])
            items[correction.sha256] = Item(example, None, correction)
        elif correction.caption not in known.example.captions:
            captions = [*known.example.captions, correction.caption]
            items[correction.sha256] = replace(known, example=replace(known.example, captions=captions))
    for sha256, text in withdrawn_texts(found, [None] * len(found)):
        if known := items.get(sha256):
            captions = [caption for caption in known.example.captions if clean(caption) != text]
            items[sha256] = replace(known, example=replace(known.example, captions=captions))
    return list(items.values())


def unseen(items: Iterable[Item], found: Iterable[Correction], person: str) -> list[Item]:
    """Return the pictures that a person has not reviewed. To call a caption of the data wrong is no review yet."""
    done = {one.sha256 for one in found if one.who == person and not (one.action == "reject" and one.model is None)}
    return [item for item in items if item.example.sha256 not in done]


def sample(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` pictures, always the same ones of the same pictures, from anywhere in the data set."""
    return sorted(items, key=lambda item: hashlib.sha256(item.example.sha256.encode()).digest())[:most]


def is_blind(sha256: str, person: str) -> bool:
    """Return whether a person sees this picture without the model's words. It is the same at every visit.

    A share of the pictures is shown so, because people accept what they are shown too easily.
    """
    draw = hashlib.sha256(f"{person} {sha256}".encode("utf-8", "replace")).digest()
    return int.from_bytes(draw[:8]) / 2**64 < _BLIND_SHARE


@dataclass(frozen=True)
class Rate:
    """How a person judged the captions of a version: how many were accepted, edited and rejected."""

    who: str
    version: str
    accepted: int
    edited: int
    rejected: int


def rates(found: Iterable[Correction]) -> list[Rate]:
    """Return the judgements of each person and version, from the corrections that count."""
    counts: Counter[tuple[str, str, str]] = Counter(
        (one.who, f"{one.model} {one.version}" if one.version is not None else str(one.model), one.action)
        for one in found
        if one.model is not None
    )
    pairs = sorted({(who, version) for who, version, _ in counts})
    return [
        Rate(who, version, *(counts[who, version, action] for action in ("accept", "edit", "reject")))
        for who, version in pairs
    ]
