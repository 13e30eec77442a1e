"""Read an uncompressed tar in place, as webdataset writes it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.errors import DataError


class TarReader:
    """An open tar. Threads may share it.

    Attributes:
        infos: its members, in order.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as file:
            self.infos = file.getmembers()

    def size(self, info: tarfile.TarInfo) -> int:
        """Return the size of a member in bytes, as stated."""
        return info.size

    def read(self, info: tarfile.TarInfo, limit: int) -> bytes:
        """Return the bytes of a member, at most `limit` + 1.

        Raises:
            ValueError: the tar was cut off.
        """
        size = min(info.size, limit + 1)
        data = os.pread(self._descriptor, size, info.offset_data)
        if len(data) < size:
            raise ValueError("cut off")
        return data


@contextmanager
def open_tar(path: Path) -> Iterator[TarReader]:
    """Open a tar for reading.

    Raises:
        DataError: it is no tar, or its list of members is cut off.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            opened = TarReader(path, descriptor)
        except (tarfile.TarError, EOFError, ValueError, OverflowError):
            raise DataError(
                f"{path}: is not a tar archive, or was cut off ({path.stat().st_size:,} bytes found); download or"
                " create it again"
            ) from None
        yield opened
    finally:
        os.close(descriptor)
