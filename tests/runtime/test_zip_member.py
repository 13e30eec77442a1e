from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.runtime.zip_member import read_member

CONTENT = {"a.jpg": b"first", "folder/\u00e9.jpg": b"second" * 1000, "empty": b""}


def written(path: Path, kind: int = zipfile.ZIP_STORED) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, data in CONTENT.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.extra = kind, b"\x99\x99\x04\x00more"
            new.writestr(info, data)
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_read_as_zipfile_reads_them(tmp_path: Path, kind: int) -> None:
    with written(tmp_path / "some.zip", kind) as shard:
        assert {name: read_member(shard, name) for name in CONTENT} == CONTENT
        with pytest.raises(KeyError):
            read_member(shard, "b.jpg")


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with written(path) as shard:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"first", b"worst"))
        with pytest.raises(zipfile.BadZipFile, match="wrong CRC-32 of a.jpg"):
            read_member(shard, "a.jpg")
        path.write_bytes(data[:20])
        with pytest.raises(zipfile.BadZipFile, match="a.jpg is cut off"):
            read_member(shard, "a.jpg")
