"""Read the files of a source's folder and of the zips and tars in it, without unpacking anything to disk.

No other module reads raw archives. Zip bombs, path traversal, links and damaged files are detected here.
"""

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.errors import DataError
from pipeline.data.sources.bucket_list import NAME as BUCKET_LIST
from pipeline.data.sources.bucket_list import READERS, BucketList, BucketReader, read_list, walk_order
from pipeline.data.sources.encodings import decode_names
from pipeline.data.sources.member import ARCHIVES, Member, MemberError, printable, suffix
from pipeline.data.sources.parquet_file import ParquetReader, member_name, open_parquet
from pipeline.data.sources.tar_file import TarReader, open_tar
from pipeline.runtime.bucket import is_path

# The list of files in a zip is read into memory at once, with the size that the zip states; this is the limit.
_MAX_DIRECTORY_BYTES = 2**28
_MAX_FILES = 2_000_000
# Photos hardly compress. A compression ratio as high as this is a zip bomb.
_MAX_RATIO = 200
_RATIO_FREE_BYTES = 2**24  # files up to this size may have any ratio, as a white drawing does
_MAX_TOTAL_RATIO = 100
_TOTAL_FREE_BYTES = 2**30  # what a zip may unpack to in addition to `_MAX_TOTAL_RATIO` times its size
_CHUNK = 2**20
_UTF_8 = 0x800  # flag of a zip's file whose name is UTF-8

# What `zipfile` and its decompressors raise on damaged data (found by fuzzing).
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(UnicodeDecodeError, ValueError, NotImplementedError, RuntimeError, OverflowError),
)


class Files:
    """All files of a source's folder and of the zips in it, created by `open_files`. Threads may share it.

    Attributes:
        folder: the source's folder.
        members: the files.
        readers: threads that reading pays off with; 0 for as many as the processor keeps busy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.readers = 0
        self._opened: list[tuple[Path | _Zip | TarReader | ParquetReader | BucketReader, Any]] = []  # and place in it

    def _add_loose(self, path: Path) -> None:
        name = printable(path.relative_to(self.folder).as_posix())
        nested = suffix(name) in ARCHIVES
        refused = "link" if path.is_symlink() else "nested_archive" if nested else None
        self.members.append(Member(name, "", refused))
        self._opened.append((path, None))

    def _add_zip(self, name: str, opened: _Zip) -> None:
        name = printable(name)
        # (`ZipInfo.is_dir` fails on a name that is empty.)
        infos = [info for info in opened.file.infolist() if not info.filename.endswith("/")]
        names = _names(infos)
        last = {info.filename: place for place, info in enumerate(infos)}
        for place, info in enumerate(infos):
            # If two files have the same name, unpacking the archive leaves the later one.
            refused = "duplicate_name" if last[info.filename] != place else _refused(info)
            self.members.append(Member(printable(names[place].replace("\\", "/")), name, refused))
            self._opened.append((opened, info))

    def _add_tar(self, path: Path, opened: TarReader) -> None:
        name = printable(path.relative_to(self.folder).as_posix())
        infos = [info for info in opened.infos if not info.isdir()]
        last = {info.name: place for place, info in enumerate(infos)}
        for place, info in enumerate(infos):
            refused = "duplicate_name" if last[info.name] != place else _unsafe(info.name)
            if not info.isreg() or info.issparse():
                refused = refused or "link"
            elif suffix(info.name) in ARCHIVES:
                refused = refused or "nested_archive"
            self.members.append(Member(printable(info.name), name, refused))
            self._opened.append((opened, info))

    def _add_parquet(self, path: Path, opened: ParquetReader) -> None:
        self._add_loose(path)  # for its captions
        name = printable(path.relative_to(self.folder).as_posix())
        for row, picture in enumerate(opened.paths):
            self.members.append(Member(member_name(name, row, suffix(printable(picture)) or ".jpg"), name, None))
            self._opened.append((opened, row))

    def _add_bucket(self, listed: BucketList) -> None:
        """Add the objects of a bucket where they would be if they were files of the folder."""
        opened = BucketReader(self.folder.name, listed.url)
        for one in listed.objects:
            if not one.copied:
                nested = "nested_archive" if suffix(one.name) in ARCHIVES else None
                self.members.append(Member(printable(one.name), "", nested if is_path(one.name) else "unsafe_key"))
                self._opened.append((opened, one))
        self.readers = READERS
        order = sorted(range(len(self.members)), key=lambda index: walk_order(self.members[index].outermost))
        self.members = [self.members[index] for index in order]
        self._opened = [self._opened[index] for index in order]

    def size(self, index: int) -> int:
        """Return the size in bytes of the file at `index` of `members`, as stated; `read` returns no more.

        0 if it cannot be determined; `read` then reports the reason.
        """
        opened, info = self._opened[index]
        try:
            return opened.stat().st_size if isinstance(opened, Path) else int(opened.size(info))
        except OSError:
            return 0

    def stamp(self, index: int) -> bytes | None:
        """Return what identifies the bytes of the file at `index` of `members` without reading them, if anything does.

        Only objects of a bucket have such a stamp.
        """
        opened, info = self._opened[index]
        return opened.stamp(info) if isinstance(opened, BucketReader) else None

    def read(self, index: int, limit: int) -> bytes:
        """Return the bytes of the file at `index` of `members`.

        No more than about `limit` bytes are unpacked, whatever the header states.

        Raises:
            MemberError: with the reason of the member's `refused`, `too_many_bytes`, `bomb` (implausible compression
                ratio), or `damaged` (wrong checksum, truncated, or unknown compression).
            DataError: its zip as a whole unpacks to implausibly many bytes; or its object has changed in the bucket.
            ConfigError, TemporaryError: its bucket denies access, or can't be reached.
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
                data = opened.read(info, limit)
        except (OSError, *_DAMAGED) as error:
            if _is_disk_error(error):  # a failing disk must not set aside intact pictures
                raise
            raise MemberError("damaged") from error
        if len(data) > limit:
            raise MemberError("too_many_bytes")
        return data


class _Zip:
    """An open zip, and how many bytes may still be unpacked from it."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.file = file
        self._path = path
        self._budget = _TOTAL_FREE_BYTES + _MAX_TOTAL_RATIO * path.stat().st_size
        self._lock = threading.Lock()

    def read(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        # Bytes are counted while unpacking, because the header of a bomb may lie about `file_size`. It cannot lie about
        # `compress_size`, because no more than that is read.
        bound = max(_RATIO_FREE_BYTES, _MAX_RATIO * info.compress_size)
        pieces, size = [], 0
        with self.file.open(info) as stream:
            while size <= limit and (piece := stream.read(min(_CHUNK, limit + 1 - size))):
                size += len(piece)
                self._count(len(piece))
                if size > bound:
                    raise MemberError("bomb")
                pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self, info: zipfile.ZipInfo) -> int:
        return info.file_size

    def _count(self, size: int) -> None:
        with self._lock:
            self._budget -= size
            if self._budget < 0:
                raise DataError(
                    f"{self._path}: unpacks to over {_MAX_TOTAL_RATIO} times its size, which looks like a zip bomb;"
                    " create the zip again from the pictures"
                )


@contextmanager
def open_files(folder: Path) -> Iterator[Files]:
    """Open all files of a source's folder, of the zips and tars in it, and of the bucket that it lists, for reading.

    Links are not followed.

    Raises:
        DataError: the folder does not exist; a zip is not a zip, is cut off (its list of files is at the end), or
            lists too many files; a bucket's list is damaged.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: not found; put the .zip of pictures and the .csv of captions there, or `dvc pull {folder}.dvc`"
        )
    files, listed = Files(folder), read_list(folder)
    with ExitStack() as stack:
        for place, folders, names in os.walk(folder, onerror=_raise):
            folders.sort()
            links = [name for name in folders if Path(place, name).is_symlink()]
            if listed and Path(place) == folder:
                names.remove(BUCKET_LIST)
            for path in (Path(place, name) for name in sorted(names + links)):
                if path.suffix.lower() == ".zip" and not path.is_symlink() and not path.name.startswith("."):
                    name = path.relative_to(folder).as_posix()
                    files._add_zip(name, stack.enter_context(_open_zip(path)))
                elif path.suffix.lower() == ".tar" and not path.is_symlink() and not path.name.startswith("."):
                    files._add_tar(path, stack.enter_context(open_tar(path)))
                elif path.suffix.lower() == ".parquet" and not path.is_symlink() and not path.name.startswith("."):
                    files._add_parquet(path, stack.enter_context(open_parquet(path)))
                elif path.is_symlink() or path.is_file():
                    files._add_loose(path)
        if listed:
            files._add_bucket(listed)
        yield files


def _raise(error: OSError) -> None:
    """Let `os.walk` stop at a folder that can't be read; by itself it leaves it out."""
    raise error


@contextmanager
def open_zip(path: Path) -> Iterator[Files]:
    """Open the files of a single zip for reading; their `archive` is "".

    Raises:
        DataError: see `open_files`.
    """
    files = Files(path.parent)
    with _open_zip(path) as opened:
        files._add_zip("", opened)
        yield files


class _TooManyFilesError(Exception):
    pass


class _Reader(io.BufferedReader):
    """The file of a zip; raises an error instead of reading an implausibly long list of files into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _TooManyFilesError
        return super().read(size)


@contextmanager
def _open_zip(path: Path) -> Iterator[_Zip]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(zipfile.ZipFile(stack.enter_context(_Reader(io.FileIO(path)))))
            if len(file.infolist()) > _MAX_FILES:
                raise _TooManyFilesError
        except _TooManyFilesError:
            raise DataError(f"{path}: lists over {_MAX_FILES:,} files; split it into several smaller zips") from None
        except (OSError, *_DAMAGED) as error:
            if _is_disk_error(error):
                raise
            raise DataError(
                f"{path}: is not a zip archive, or was cut off ({path.stat().st_size:,} bytes found);"
                " download or create it again"
            ) from None
        yield _Zip(path, file)


def zip_unpacks_to(data: bytes) -> int | None:
    """Return the number of bytes that a zip in memory says it unpacks to; None if it is not a zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return sum(info.file_size for info in file.infolist())
    except (OSError, *_DAMAGED):
        return None


def _refused(info: zipfile.ZipInfo) -> str | None:
    if unsafe := _unsafe(info.filename):
        return unsafe
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link"
    if info.flag_bits & 0x1:
        return "encrypted"
    return "nested_archive" if suffix(info.filename.replace("\\", "/")) in ARCHIVES else None


def _unsafe(name: str) -> str | None:
    name = name.replace("\\", "/")
    climbs = name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/")
    return "unsafe_path" if climbs else None


def _names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the files' names; if the zip does not say how they are encoded, it is detected."""
    names = [info.filename for info in infos]
    unsaid = [place for place, info in enumerate(infos) if not info.flag_bits & _UTF_8 and not names[place].isascii()]
    try:
        raw = [names[place].encode("cp437") for place in unsaid]
    except UnicodeEncodeError:
        return names
    for place, name in zip(unsaid, decode_names([names[place] for place in unsaid], raw), strict=True):
        names[place] = name
    return names


def _is_disk_error(error: Exception) -> bool:
    """Return whether the file system failed. (Damaged offsets make `zipfile` seek out of range: EINVAL.)"""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
