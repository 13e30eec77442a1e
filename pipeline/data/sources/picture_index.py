"""Find the picture that a captions row names."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

from pipeline.data.sources.member import Member

UNSUPPORTED = {
    *(".jxl", ".svg", ".psd", ".ai", ".eps", ".pdf", ".ico", ".jp2", ".tga", ".xcf"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"),
}
VIDEOS = {".mp4", ".mov", ".m4v", ".webm", ".avi", ".mkv"}

_COMPARED = 1_000  # names that are compared with a missing one
_URL = re.compile(r"(?:https?|file|s3|gs)://", re.IGNORECASE)
_ABSOLUTE = re.compile(r"/|~/|[A-Za-z]:/")


class PictureIndex:
    """The pictures of a source by name.

    A row may name the path from the top of the source or from the captions file's folder, the end of that path, or only
    the file name, each with or without suffix. An exact match wins over one that differs in Unicode normalisation, and
    that over one that differs in case.
    """

    def __init__(self, pictures: Mapping[int, Member]) -> None:
        self._paths = {index: member.name.replace("\\", "/") for index, member in pictures.items()}
        self._by_name: dict[str, set[int]] = {}
        for index, path in self._paths.items():
            name = _fold(path.rpartition("/")[2])
            for key in (name, _without_suffix(name)):
                self._by_name.setdefault(key, set()).add(index)

    def find(self, picture: str, folder: str) -> set[int]:
        """Return the indices of the members that `picture` may name: one, none, or several if it is ambiguous.

        Args:
            picture: the name or path as written in the row.
            folder: the folder that a relative path starts from.
        """
        wanted = picture.replace("\\", "/").removeprefix("./")
        candidates = self._by_name.get(_fold(wanted.rpartition("/")[2]), set())
        in_folder = f"{folder}/{wanted}" if folder else wanted
        for fold in (str, _normalise, _fold):
            for path in (in_folder, wanted):
                if found := {i for i in candidates if fold(path) in _spellings(fold(self._paths[i]))}:
                    return found
            end = f"/{fold(wanted)}"
            if found := {i for i in candidates if any(p.endswith(end) for p in _spellings(fold(self._paths[i])))}:
                return found
        return set()

    def find_foreign(self, picture: str) -> set[int]:
        """Return the indices of the members that an absolute path of another machine, or a URL, may name by its end.

        The longest end that any picture has counts; at the least it is the file name.
        """
        path = unquote(urlsplit(picture).path) if _URL.match(picture) else picture
        path = path.replace("\\", "/")
        if not _URL.match(picture) and not _ABSOLUTE.match(path):
            return set()
        parts = [part for part in path.split("/") if part]
        return next((found for start in range(len(parts)) if (found := self.find("/".join(parts[start:]), ""))), set())


def why_unused(suffix: str) -> str:
    """Return why a file that is neither picture nor captions is not used, as a code of `audit.FILE_REASONS`."""
    if suffix in (".csv", ".tsv", ".parquet"):
        return "not_captions"
    return "unsupported_format" if suffix in UNSUPPORTED else "not_a_picture_file"


def most_similar(name: str, places: Sequence[str]) -> str | None:
    """Return the place that is most similar to a missing name; None if there are no places."""
    return next(iter(difflib.get_close_matches(name, places[:_COMPARED], 1, 0)), None)


def _normalise(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _fold(path: str) -> str:
    return _normalise(_normalise(path).casefold())


def _without_suffix(path: str) -> str:
    return path.rpartition(".")[0]


def _spellings(path: str) -> tuple[str, str]:
    return path, _without_suffix(path)
