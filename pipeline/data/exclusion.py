"""Find the pictures that `ingest.exclude` names: by hash, by file name, or by similarity to pictures in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.errors import DataError
from pipeline.data import images
from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Exclusion:
    """The entries of `ingest.exclude`.

    Attributes:
        matches: the number of pictures that each entry excludes; `find` fills it.
        without_match: the entries, other than folders, that match no picture.
    """

    def __init__(self, entries: Sequence[str], image_size: int, max_pixels: int) -> None:
        """Read the pictures in the folders among the entries.

        Raises:
            DataError: a file in such a folder cannot be read as a picture, so similar pictures could not be excluded.
        """
        self.matches = dict.fromkeys(entries, 0)
        self.without_match: list[str] = []
        self._folders = {
            entry: _read_folder(Path(entry), image_size, max_pixels) for entry in entries if Path(entry).is_dir()
        }

    def find(self, fingerprints: Fingerprints, names: Sequence[tuple[str, Sequence[str]]], max_bits: int) -> set[int]:
        """Return the indices of the pictures to exclude: the named ones and all their near-duplicates.

        Args:
            fingerprints: of all pictures.
            names: for each picture its SHA-256, and the places where it was found (`images.zip:img/1.jpg`).
            max_bits: see `find_near_duplicates`.
        """
        excluded: set[int] = set()
        for entry in self.matches:
            if entry in self._folders:
                sha256s, targets = self._folders[entry]
                named = {i for i, (sha256, _) in enumerate(names) if sha256 in sha256s}
            else:
                named = {i for i, (sha256, places) in enumerate(names) if _is_named(entry, sha256, places)}
                targets = fingerprints[sorted(named)]
                if not named:
                    self.without_match.append(entry)
            found = named | set(find_near_duplicates(fingerprints, targets, max_bits))
            self.matches[entry] = len(found)
            excluded |= found
        return excluded


def excluded_sha256s(entries: Sequence[str]) -> set[str]:
    """Return the hashes among the entries of `ingest.exclude`, and those of the pictures in its folders."""
    folders = [Path(entry) for entry in entries if Path(entry).is_dir()]
    files = (file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in images.SUFFIXES)
    named = {entry.lower() for entry in entries if _SHA256.fullmatch(entry)}
    return named | {images.identity(file.read_bytes()) for file in files if file.is_file()}


def _is_named(entry: str, sha256: str, places: Sequence[str]) -> bool:
    if _SHA256.fullmatch(entry):
        return entry.lower() == sha256
    # "img/1.jpg" matches the end of "images.zip:img/1.jpg", but "g/1.jpg" does not.
    return any(place == entry or place.endswith((f"/{entry}", f":{entry}")) for place in places)


def _read_folder(folder: Path, image_size: int, max_pixels: int) -> tuple[set[str], Fingerprints]:
    """Return the SHA-256 and fingerprints of the pictures in a folder; hidden files are skipped."""
    sha256s, pictures = set(), []
    for file in sorted(folder.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        data = file.read_bytes()
        sha256s.add(images.identity(data))
        try:
            pictures.append(images.normalise(data, image_size, max_pixels))
        except images.PictureError as error:
            raise DataError(
                f"{file}: {error}, so similar pictures cannot be excluded (ingest.exclude); replace it with an intact"
                " picture, or remove it"
            ) from None
    return sha256s, Fingerprints.of([(picture.phash, picture.thumbnail) for picture in pictures])
