"""A caption per picture in a file of its own: text files, or XMP sidecars, which keep what else is in them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO

from pipeline.serving.bulk_record import NAME, Line, Output, append, read, sync
from pipeline.serving.xmp import MAX_BYTES, XmpError, described, description

# Errors of one sidecar's path: a picture may be called `a.txt/b.jpg` beside `a.jpg`, whose sidecar is `a.txt`.
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


class Sidecars(StrEnum):
    """What is written per picture into a folder."""

    txt = "txt"
    xmp = "xmp"


class _SidecarFiles(Output):
    """A file per picture, and `captions.jsonl`, which tells our captions from those of people."""

    def __init__(self, folder: Path, file: IO[bytes], record: Path, names: Sequence[str]) -> None:
        super().__init__(folder)
        self._file = file
        self._places = self._of(names)
        captions = {line[NAME]: line.get("caption") for line in read(record)}
        for name in names:
            with self._refusing(name) as place:
                if name in captions:
                    self.captioned.add(name)
                    self._put(place, str(captions[name]))  # a kill may have come before the sidecar
                elif self._has_caption(place):
                    self.left_alone.add(name)

    def write(self, lines: Sequence[Line]) -> None:
        append(self._file, lines)
        for line in lines:
            with self._refusing(line.file_name) as place:
                if not self._put(place, line.captions[0]):
                    self.left_alone.add(line.file_name)

    @contextlib.contextmanager
    def _refusing(self, name: str) -> Iterator[Path]:
        """Yield the path of a picture's sidecar; note if it can't be read or written because of what it is."""
        place = self.path / self._places[name]
        try:
            yield place
        except XmpError as error:
            self.refused[name] = f"{place}: {error}"
        except OSError as error:
            if error.errno not in _PATH_ERRORS:
                raise
            self.refused[name] = f"{place}: can't be written ({error.strerror})"

    @abstractmethod
    def _of(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the path of each picture's sidecar within the folder."""

    @abstractmethod
    def _has_caption(self, place: Path) -> bool:
        """Return whether a sidecar has a caption."""

    @abstractmethod
    def _put(self, place: Path, caption: str) -> bool:
        """Write a caption into a sidecar that has none; return whether it was written."""


class TextFiles(_SidecarFiles):
    """`photo.txt`, or `photo.jpg.txt` if two pictures would share a file."""

    def _of(self, names: Sequence[str]) -> Mapping[str, str]:
        return _text_files(names)

    def _has_caption(self, place: Path) -> bool:
        return place.exists()

    def _put(self, place: Path, caption: str) -> bool:
        return _create(place, f"{caption}\n".encode())


class XmpFiles(_SidecarFiles):
    """`photo.jpg.xmp`, which most photo managers read and write, or `photo.xmp` if that exists."""

    def _of(self, names: Sequence[str]) -> Mapping[str, str]:
        short = {name: text.removesuffix(".txt") for name, text in _text_files(names).items()}
        return {
            name: f"{short[name]}.xmp"
            if (self.path / f"{short[name]}.xmp").exists() and not (self.path / f"{path}.xmp").exists()
            else f"{path}.xmp"
            for name, path in _unpacked(names).items()
        }

    def _has_caption(self, place: Path) -> bool:
        return place.exists() and bool(description(_sidecar(place)))

    def _put(self, place: Path, caption: str) -> bool:
        if not place.exists():
            return _create(place, described(caption))
        before = _sidecar(place)
        if description(before):
            return False
        new = _beside(place, described(caption, before))
        try:
            shutil.copymode(place, new)
            if _sidecar(place) != before:  # someone has just written it
                return False
            new.replace(place)
        finally:
            new.unlink(missing_ok=True)
        return True


def _sidecar(place: Path) -> bytes:
    """Return the bytes of a sidecar.

    Raises:
        XmpError: it is a link, which could lead anywhere, or no file.
    """
    if place.is_symlink() or not place.is_file():
        raise XmpError("is not a file")
    with place.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _create(place: Path, content: bytes) -> bool:
    """Write a file whole, or not at all if it exists; return whether it was written."""
    if place.exists():
        return False
    new = _beside(place, content)
    try:
        os.link(new, place)  # fails if someone has written the file meanwhile; a rename would replace it
    except FileExistsError:
        return False
    finally:
        new.unlink()
    return True


def _beside(place: Path, content: bytes) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.partial")
    new.unlink(missing_ok=True)  # a killed run's; or a link that came with the pictures
    with new.open("xb") as file:
        file.write(content)
        sync(file)
    return new


def _unpacked(names: Sequence[str]) -> Mapping[str, str]:
    """Return the path of each picture as if its zip were unpacked: `a/1.jpg` for `a.zip:1.jpg`.

    A name stays as it is if two pictures would share a path, or if the path would lead out of the folder: objects of a
    bucket and files may have any name.

    >>> dict(_unpacked(["a.zip:1.jpg", "a.zip:2.jpg", "a/2.jpg", "...zip:3.jpg"]))
    {'a.zip:1.jpg': 'a/1.jpg', 'a.zip:2.jpg': 'a.zip:2.jpg', 'a/2.jpg': 'a/2.jpg', '...zip:3.jpg': '...zip:3.jpg'}
    """
    paths = {name: name.replace(".zip:", "/", 1) for name in names}
    count = Counter(paths.values())
    return {
        name: name if count[path] > 1 or path.startswith("/") or ".." in path.split("/") else path
        for name, path in paths.items()
    }


def _text_files(names: Sequence[str]) -> Mapping[str, str]:
    """Return the path of each picture's text file.

    `img/1.jpg` gets `img/1.txt`, and `a.zip:img/1.jpg` gets `a/img/1.txt`. If two pictures would share a file, their
    suffixes stay: `img/1.jpg.txt`, `img/1.png.txt`.

    >>> dict(_text_files(["1.jpg", "2.jpg", "2.png", "a.zip:3.jpg"]))
    {'1.jpg': '1.txt', '2.jpg': '2.jpg.txt', '2.png': '2.png.txt', 'a.zip:3.jpg': 'a/3.txt'}
    """
    paths = _unpacked(names)
    stems = {name: path.rpartition(".")[0] for name, path in paths.items()}
    count = Counter(stem.lower() for stem in stems.values())
    taken = {path.lower() for path in paths.values()}
    return {
        name: f"{path if count[stems[name].lower()] > 1 or stems[name].lower() in taken else stems[name]}.txt"
        for name, path in paths.items()
    }
