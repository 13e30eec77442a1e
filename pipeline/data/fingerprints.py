"""The fingerprints of pictures by SHA-256: a list that is stored with each registered version.

It shows what a version was trained on even after the sources have been deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.data.dataset import Example, read_ingested
from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates


@dataclass(frozen=True)
class PictureFingerprints:
    """The SHA-256 (of the raw bytes) and the fingerprint of each picture, in the same order."""

    sha256s: list[str]
    fingerprints: Fingerprints

    @cached_property
    def _index(self) -> dict[str, int]:
        return {sha256: i for i, sha256 in enumerate(self.sha256s)}

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._index

    def select(self, sha256s: Sequence[str]) -> PictureFingerprints:
        """Return the given pictures, in the given order.

        Raises:
            KeyError: a picture is not in the list.
        """
        return PictureFingerprints(list(sha256s), self.fingerprints[[self._index[sha256] for sha256 in sha256s]])

    def matches(self, others: PictureFingerprints, max_bits: int) -> set[int]:
        """Return the indices of the pictures in `others` that are in this list, or near-duplicates of one in it."""
        identical = {i for i, sha256 in enumerate(others.sha256s) if sha256 in self}
        return identical | set(find_near_duplicates(others.fingerprints, self.fingerprints, max_bits))


def ingested_fingerprints() -> PictureFingerprints:
    """Return the fingerprints of all pictures in data/ingest."""
    found = {
        record.sha256: (int(record.phash, 16), bytes.fromhex(record.thumbnail))
        for records in sorted(paths.INGEST.glob("*/records.jsonl"))
        for record in read_ingested(records.parent)
    }
    return PictureFingerprints(list(found), Fingerprints.of(list(found.values())))


def fingerprints_of(examples: Sequence[Example]) -> PictureFingerprints:
    """Return the fingerprints of a split's pictures.

    Raises:
        DataError: a picture is not in data/ingest.
    """
    try:
        return ingested_fingerprints().select([example.sha256 for example in examples])
    except KeyError as error:
        raise DataError(f"{paths.INGEST}: has no picture {error} of {paths.DATASET}; run `dvc repro`") from None


def write_fingerprints(path: Path, pictures: PictureFingerprints) -> None:
    """Write a line per picture: SHA-256, 64-bit perceptual hash and 8 x 8 RGB thumbnail, all hexadecimal."""
    prints = zip(pictures.fingerprints.hashes.tolist(), pictures.fingerprints.thumbnails, strict=True)
    lines = [
        f"{sha256} {phash:016x} {thumbnail.tobytes().hex()}\n"
        for sha256, (phash, thumbnail) in zip(pictures.sha256s, prints, strict=True)
    ]
    path.write_text("".join(lines), encoding="ascii")


def read_fingerprints(path: Path) -> PictureFingerprints:
    """Read a file that `write_fingerprints` wrote."""
    columns = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    fingerprints = Fingerprints.of([(int(phash, 16), bytes.fromhex(thumbnail)) for _, phash, thumbnail in columns])
    return PictureFingerprints([sha256 for sha256, _, _ in columns], fingerprints)
