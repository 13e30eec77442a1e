"""Read a file from a zip in several threads at once."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

_LOCAL_HEADER = struct.Struct("<26xHH")  # before each file; ends with the lengths of its name and of the extra field


def read_member(shard: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a file in a zip.

    `ZipFile.read` lets one thread at a time read from the disk. That is slow if the disk is in a network, so files that
    are stored uncompressed are read without it. (The format of a local file header:
    APPNOTE.TXT 4.3.7 of PKWARE.)

    Raises:
        BadZipFile: the zip is damaged.
    """
    info = shard.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or shard.fp is None:
        return shard.read(name)
    descriptor = shard.fp.fileno()
    header = os.pread(descriptor, _LOCAL_HEADER.size, info.header_offset)
    if len(header) < _LOCAL_HEADER.size:
        raise zipfile.BadZipFile(f"{name} is cut off")
    name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    data = os.pread(descriptor, info.file_size, start)
    if zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"wrong CRC-32 of {name}")
    return data
