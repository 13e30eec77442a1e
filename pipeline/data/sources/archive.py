"""The one door to what people bring: names and bytes out of a folder and its zips, nothing ever unpacked to disk."""

from __future__ import annotations

import errno
import io
import lzma
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import DataError

# A zip's list of files is read into memory whole, by the size that the zip claims for it: so much is read at most.
_MOST_DIRECTORY_BYTES = 2**28
_MOST_FILES = 2_000_000
# Photos hardly shrink in a zip. What swells this much is no archive of photos, but made to fill a disk.
_MOST_SWELLING = 200
_SWELLING_BYTES = 2**24  # of one file; smaller ones may swell as they like: a white drawing does
_TOTAL_SWELLING = 100
_TOTAL_BYTES = 2**30  # of one zip, beside `_TOTAL_SWELLING` times its size
_CHUNK = 2**20

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

# What the readers of zip and its compressions were seen to raise on damaged bytes.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(UnicodeDecodeError, ValueError, NotImplementedError, RuntimeError, OverflowError),
)


class MemberError(Exception):
    """One file can't be read; `reason` is the code that the account uses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """A file of a source.

    Attributes:
        name: its path within the zip, or within the source's folder, with `/` between folders.
        archive: the path of its zip within the source's folder; "" for a file that lies beside the zips.
        refused: why it is not read, as the account names it: `unsafe_path`, `link`, `duplicate_name`,
            `encrypted`, `nested_archive`; None where nothing speaks against it.
    """

    name: str
    archive: str
    refused: str | None

    @property
    def base(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What its name ends in, in small letters: ".jpg"; "" for none."""
        return suffix(self.name)

    @property
    def place(self) -> str:
        """Where it is: `images.zip:img/1.jpg`, or `img/1.jpg` for a file beside the zips."""
        return f"{self.archive}:{self.name}" if self.archive else self.name


class Files:
    """All files of a source's folder and of the zips in it; `open_files` makes one. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self._opened: list[tuple[Path | _Zip, zipfile.ZipInfo | None]] = []

    def _add_loose(self, path: Path) -> None:
        name = _printable(path.relative_to(self.folder).as_posix())
        nested = suffix(name) in _ARCHIVES
        refused = "link" if path.is_symlink() else "nested_archive" if nested else None
        self.members.append(Member(name, "", refused))
        self._opened.append((path, None))

    def _add_zip(self, path: Path, opened: _Zip) -> None:
        name = _printable(path.relative_to(self.folder).as_posix())
        # (`ZipInfo.is_dir` fails on a name that is empty.)
        infos = [info for info in opened.file.infolist() if not info.filename.endswith("/")]
        last = {info.filename: place for place, info in enumerate(infos)}
        for place, info in enumerate(infos):
            # Of two files of one name the later is what a person sees who unpacks the archive.
            refused = "duplicate_name" if last[info.filename] != place else _refused(info)
            self.members.append(Member(_printable(info.filename.replace("\\", "/")), name, refused))
            self._opened.append((opened, info))

    def read(self, index: int, limit: int) -> bytes:
        """The bytes of the file at `index` of `members`.

        Hardly more than `limit` bytes are ever unpacked, whatever the header claims.

        Raises:
            MemberError: the member's own `refused`; `too_many_bytes`; `bomb` (it swells far more than a picture
                does); or `damaged` (wrong checksum, cut off, or an unknown compression).
            DataError: what was read of its zip altogether is far more than the zip holds: a bomb of many files.
        """
        refused = self.members[index].refused
        if refused:
            raise MemberError(refused)
        opened, info = self._opened[index]
        try:
            if isinstance(opened, Path):
                with opened.open("rb") as stream:
                    data = stream.read(limit + 1)
            else:
                assert info is not None
                data = opened.read(info, limit)
        except (OSError, *_DAMAGED) as error:
            if _is_of_the_disk(error):  # no good picture may be set aside because a disk failed
                raise
            raise MemberError("damaged") from error
        if len(data) > limit:
            raise MemberError("too_many_bytes")
        return data


class _Zip:
    """An opened zip, and how much was unpacked of it so far."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.file = file
        self._path = path
        self._budget = _TOTAL_BYTES + _TOTAL_SWELLING * path.stat().st_size
        self._lock = threading.Lock()

    def read(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        # Sizes are counted as they come out: a bomb's header need not tell the truth. Only `compress_size` does, for
        # no more than that is taken in.
        bound = max(_SWELLING_BYTES, _MOST_SWELLING * info.compress_size)
        pieces, size = [], 0
        with self.file.open(info) as stream:
            while size <= limit and (piece := stream.read(min(_CHUNK, limit + 1 - size))):
                size += len(piece)
                self._count(len(piece))
                if size > bound:
                    raise MemberError("bomb")
                pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _count(self, size: int) -> None:
        with self._lock:
            self._budget -= size
            if self._budget < 0:
                raise DataError(
                    f"{self._path}: unpacks to over {_TOTAL_SWELLING} times its size, as no archive of pictures does;"
                    " bring the pictures in a zip made in the common way"
                )


@contextmanager
def open_files(folder: Path) -> Iterator[Files]:
    """Open all that lies in a source's folder, and what is in its zips, for reading; links are not followed.

    Raises:
        DataError: there is no such folder; a zip in it is none, is cut off (the list of a zip's files stands at
            its end), or lists more files than any archive of pictures.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: not found; put the .zip of pictures and the .csv of captions there, or `dvc pull {folder}.dvc`"
        )
    files = Files(folder)
    with ExitStack() as stack:
        for place, folders, names in os.walk(folder):
            folders.sort()
            links = [name for name in folders if Path(place, name).is_symlink()]
            for path in (Path(place, name) for name in sorted(names + links)):
                if path.suffix.lower() == ".zip" and not path.is_symlink() and not path.name.startswith("."):
                    files._add_zip(path, stack.enter_context(_open_zip(path)))
                elif path.is_symlink() or path.is_file():
                    files._add_loose(path)
        yield files


class _TooManyFilesError(Exception):
    pass


class _Reader(io.BufferedReader):
    """A zip's file, of which no list of files is read that is larger than any archive of pictures has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY_BYTES:
            raise _TooManyFilesError
        return super().read(size)


@contextmanager
def _open_zip(path: Path) -> Iterator[_Zip]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(zipfile.ZipFile(stack.enter_context(_Reader(io.FileIO(path)))))
            if len(file.infolist()) > _MOST_FILES:
                raise _TooManyFilesError
        except _TooManyFilesError:
            raise DataError(
                f"{path}: lists over {_MOST_FILES:,} files; bring the pictures in several smaller zips"
            ) from None
        except (OSError, *_DAMAGED) as error:
            if _is_of_the_disk(error):
                raise
            raise DataError(
                f"{path}: is not a zip archive, or was cut off ({path.stat().st_size:,} bytes found);"
                " download or make it again"
            ) from None
        yield _Zip(path, file)


def _refused(info: zipfile.ZipInfo) -> str | None:
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "unsafe_path"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link"
    if info.flag_bits & 0x1:
        return "encrypted"
    return "nested_archive" if suffix(name) in _ARCHIVES else None


def suffix(name: str) -> str:
    """What a file's name ends in, in small letters, as `pathlib` has it, of whose paths a million take seconds.

    >>> suffix("img/one.JPG"), suffix("..jpg"), suffix(".jpg"), suffix("img.d/one")
    ('.jpg', '.jpg', '', '')
    """
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if 0 < dot < len(base) - 1 else ""


def _printable(name: str) -> str:
    """A name that any table, page and terminal can show: no line ends or other controls, no halves of letters."""
    return _CONTROLS.sub("\ufffd", name.encode("utf-8", "replace").decode("utf-8"))


def _is_of_the_disk(error: Exception) -> bool:
    """Whether it is the file system that failed; damaged offsets make `zipfile` seek where no file goes (EINVAL)."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
