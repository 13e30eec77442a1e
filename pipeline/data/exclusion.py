"""Pictures that may not be used any more: by hash, by name, or by their likeness to pictures in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.errors import DataError
from pipeline.data import images
from pipeline.data.split import Prints, look_alikes

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Exclusion:
    """What `ingest.exclude` names.

    Attributes:
        matches: how many pictures each entry took out, filled by `matching`.
        without_match: the entries, folders aside, that no picture fits.
    """

    def __init__(self, entries: Sequence[str], image_size: int, max_pixels: int) -> None:
        """Read the pictures of the folders among the entries.

        Raises:
            DataError: a file in such a folder is no picture that can be read: what should be left out would be used.
        """
        self.matches = dict.fromkeys(entries, 0)
        self.without_match: list[str] = []
        self._folders = {
            entry: _of_folder(Path(entry), image_size, max_pixels) for entry in entries if Path(entry).is_dir()
        }

    def matching(self, prints: Prints, names: Sequence[tuple[str, Sequence[str]]], max_bits: int) -> set[int]:
        """The indices of the pictures to leave out: those that are named, and all that are nearly the same as one.

        Args:
            prints: of the pictures.
            names: of each picture its SHA-256, and where it was found (`images.zip:img/1.jpg`).
            max_bits: as for near-duplicates across splits.
        """
        out: set[int] = set()
        for entry in self.matches:
            if entry in self._folders:
                hashes, theirs = self._folders[entry]
                named = {i for i, (sha256, _) in enumerate(names) if sha256 in hashes}
            else:
                named = {i for i, (sha256, places) in enumerate(names) if _names(entry, sha256, places)}
                theirs = prints[sorted(named)]
                if not named:
                    self.without_match.append(entry)
            found = named | set(look_alikes(prints, theirs, max_bits))
            self.matches[entry] = len(found)
            out |= found
        return out


def _names(entry: str, sha256: str, places: Sequence[str]) -> bool:
    if _SHA256.fullmatch(entry):
        return entry.lower() == sha256
    # "img/1.jpg" is the end of "images.zip:img/1.jpg", but "g/1.jpg" is not.
    return any(place == entry or place.endswith((f"/{entry}", f":{entry}")) for place in places)


def _of_folder(folder: Path, image_size: int, max_pixels: int) -> tuple[set[str], Prints]:
    hashes, made = set(), []
    for file in sorted(folder.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        data = file.read_bytes()
        hashes.add(images.identity(data))
        try:
            made.append(images.normalise(data, image_size, max_pixels))
        except images.PictureError as error:
            raise DataError(
                f"{file}: {error}, so what is like it can't be left out (ingest.exclude); bring it as a whole picture,"
                " or take it away"
            ) from None
    return hashes, Prints.of([(picture.phash, picture.thumbnail) for picture in made])
