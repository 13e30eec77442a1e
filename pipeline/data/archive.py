"""The one door to a raw archive: names and bytes out of a stranger's zip, nothing ever unpacked to disk."""

from __future__ import annotations

import errno
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError

# What the readers of zip and its compressions were seen to raise on damaged bytes.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(UnicodeDecodeError, ValueError, NotImplementedError, RuntimeError),
)


class MemberError(Exception):
    """One member of an archive can't be read; `reason` is the code that the account uses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name with `/` between folders, and its size in bytes as the header claims."""

    name: str
    size: int


class Archive:
    """A zip file opened for reading; `open_archive` makes one."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._infos = [info for info in file.infolist() if not info.is_dir()]

    def members(self) -> list[Member]:
        """All files, in the archive's own order; a name that occurs twice occurs twice here."""
        return [Member(info.filename.replace("\\", "/"), info.file_size) for info in self._infos]

    def read(self, index: int, limit: int) -> bytes:
        """The bytes of the file at `index` of `members()`.

        At most `limit` bytes are ever unpacked, whatever the header claims.

        Raises:
            MemberError: `too_many_bytes`, `encrypted`, or `damaged` (wrong checksum, cut off, or an
                unknown compression).
        """
        info = self._infos[index]
        if info.flag_bits & 0x1:
            raise MemberError("encrypted")
        try:
            with self._file.open(info) as stream:
                data = stream.read(limit + 1)
        except (OSError, *_DAMAGED) as error:
            if _is_of_the_disk(error):  # no good picture may be set aside because a disk failed
                raise
            raise MemberError("damaged") from error
        if len(data) > limit:
            raise MemberError("too_many_bytes")
        return data


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip for reading.

    Raises:
        DataError: the file is no zip, or is cut off (the list of a zip's files stands at its end).
    """
    try:
        file = zipfile.ZipFile(path)
    except (OSError, *_DAMAGED) as error:
        if _is_of_the_disk(error):
            raise
        size = path.stat().st_size
        raise DataError(
            f"{path}: is not a zip archive, or was cut off ({size:,} bytes found); download or make it again"
        ) from None
    with file:
        yield Archive(path, file)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether it is the file system that failed; damaged offsets make `zipfile` seek where no file goes (EINVAL)."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
