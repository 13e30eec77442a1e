"""Pictures by what tells them and their near-duplicates: a list that travels with each registered version.

So what a version was trained on is known when its sources are long gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.data.dataset import Example, read_ingested
from pipeline.data.split import Prints, look_alikes


@dataclass(frozen=True)
class Printed:
    """Some pictures: of each its SHA-256 and its print, in the same order."""

    hashes: list[str]
    prints: Prints

    @cached_property
    def _place(self) -> dict[str, int]:
        return {sha256: i for i, sha256 in enumerate(self.hashes)}

    def has(self, sha256: str) -> bool:
        """Whether a picture is among these, by its raw bytes."""
        return sha256 in self._place

    def of(self, hashes: Sequence[str]) -> Printed:
        """Some of these, in the order that is given.

        Raises:
            KeyError: one is not among these.
        """
        return Printed(list(hashes), self.prints[[self._place[sha256] for sha256 in hashes]])

    def near(self, others: Printed, max_bits: int) -> set[int]:
        """The indices of the others' pictures that are among these, or nearly the same as one of these."""
        exactly = {i for i, sha256 in enumerate(others.hashes) if self.has(sha256)}
        return exactly | set(look_alikes(others.prints, self.prints, max_bits))


def ingested() -> Printed:
    """All pictures of the sources as they were last ingested (data/ingest)."""
    found = {
        record.sha256: (int(record.phash, 16), bytes.fromhex(record.thumbnail))
        for records in sorted(paths.INGEST.glob("*/records.jsonl"))
        for record in read_ingested(records.parent)
    }
    return Printed(list(found), Prints.of(list(found.values())))


def printed(examples: Sequence[Example]) -> Printed:
    """The pictures of a split.

    Raises:
        DataError: one is not in data/ingest.
    """
    try:
        return ingested().of([example.sha256 for example in examples])
    except KeyError as error:
        raise DataError(f"{paths.INGEST}: has no picture {error}, which {paths.DATASET} has; run `dvc repro`") from None


def write_printed(path: Path, pictures: Printed) -> None:
    """Write a line a picture: its SHA-256, its 64-bit perceptual hash and its 8 x 8 RGB thumbnail, hexadecimal."""
    prints = zip(pictures.prints.hashes.tolist(), pictures.prints.thumbnails, strict=True)
    lines = [
        f"{sha256} {code:016x} {thumbnail.tobytes().hex()}\n"
        for sha256, (code, thumbnail) in zip(pictures.hashes, prints, strict=True)
    ]
    path.write_text("".join(lines), encoding="ascii")


def read_printed(path: Path) -> Printed:
    """Read what `write_printed` wrote."""
    columns = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    prints = Prints.of([(int(code, 16), bytes.fromhex(thumbnail)) for _, code, thumbnail in columns])
    return Printed([sha256 for sha256, _, _ in columns], prints)
