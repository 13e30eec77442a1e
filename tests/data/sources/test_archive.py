from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from pipeline.config.errors import DataError
from pipeline.data.sources import archive
from pipeline.data.sources.archive import open_files
from pipeline.data.sources.member import MemberError


def put(folder: Path, files: dict[str, bytes], name: str = "a.zip", method: int = zipfile.ZIP_DEFLATED) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w", method) as file:
        for member, data in files.items():
            file.writestr(member, data)
    return folder


def outcome(folder: Path, limit: int = 10**9) -> dict[str, bytes | str]:
    """Return each file's bytes, or the reason why it cannot be read."""
    found: dict[str, bytes | str] = {}
    with open_files(folder) as files:
        for index, member in enumerate(files.members):
            try:
                found[member.place] = files.read(index, limit)
            except MemberError as error:
                found[member.place] = error.reason
    return found


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s" / "deep").mkdir(parents=True)
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("deep"):
            raise OSError(errno.EIO, "Input/output error", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="deep"), open_files(tmp_path / "s"):
        pass


def test_files_inside_and_outside_zips_are_found(tmp_path: Path) -> None:
    put(tmp_path / "s", {"img/1.jpg": b"one", "empty/": b""})
    (tmp_path / "s" / "deep").mkdir()
    put(tmp_path / "s" / "deep", {"2.jpg": b"two"}, "B.ZIP")
    (tmp_path / "s" / "deep" / "3.jpg").write_bytes(b"three")
    assert outcome(tmp_path / "s") == {
        "a.zip:img/1.jpg": b"one",
        "deep/3.jpg": b"three",
        "deep/B.ZIP:2.jpg": b"two",
    }


def test_no_more_is_read_than_the_stated_size(tmp_path: Path) -> None:
    """Ingest reserves memory by it."""
    folder = put(tmp_path / "s", {"honest.jpg": b"x" * 5000, "liar.jpg": b"y" * 5000})
    (folder / "loose.jpg").write_bytes(b"z" * 70)
    data = bytearray((folder / "a.zip").read_bytes())
    entry = data.rindex(b"liar.jpg") - 46  # in the central directory
    data[entry + 24 : entry + 28] = struct.pack("<I", 100)
    (folder / "a.zip").write_bytes(bytes(data))
    with open_files(folder) as files:
        sizes = {member.base: files.size(index) for index, member in enumerate(files.members)}
    assert sizes == {"honest.jpg": 5000, "liar.jpg": 100, "loose.jpg": 70}
    assert outcome(folder)["a.zip:liar.jpg"] in ("damaged", b"y" * 100)


@pytest.mark.parametrize("name", ["../climb.jpg", "a/../../climb.jpg", "/root.jpg", "C:\\dir\\win.jpg", "..\\up.jpg"])
def test_path_traversal_is_rejected(tmp_path: Path, name: str) -> None:
    put(tmp_path / "s", {name: b"x", "good..name.jpg": b"y"})
    assert outcome(tmp_path / "s") == {f"a.zip:{name}".replace("\\", "/"): "unsafe_path", "a.zip:good..name.jpg": b"y"}


def test_links_are_not_followed_inside_or_outside_a_zip(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    folder = tmp_path / "s"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        info = zipfile.ZipInfo("link.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "../secret.jpg")
    (folder / "loose.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "up").symlink_to(tmp_path)
    assert outcome(folder) == {"a.zip:link.jpg": "link", "loose.jpg": "link", "up": "link"}


def test_the_later_of_two_files_with_the_same_name_counts(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("x.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x.jpg", b"second")
    with open_files(folder) as files:
        assert [m.refused for m in files.members] == ["duplicate_name", None]
        assert files.read(1, 100) == b"second"


def test_nested_archives_and_encrypted_files_are_rejected(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"inner.zip": b"PK", "more.tar.gz": b"", "secret.jpg": b"secret"})
    data = bytearray((folder / "a.zip").read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of the last file
        data[data.rindex(signature) + offset] |= 1
    (folder / "a.zip").write_bytes(data)
    (folder / "beside.7z").write_bytes(b"7z")
    assert outcome(folder) == {
        "a.zip:inner.zip": "nested_archive",
        "a.zip:more.tar.gz": "nested_archive",
        "a.zip:secret.jpg": "encrypted",
        "beside.7z": "nested_archive",
    }


def test_a_zip_bomb_is_stopped_while_unpacking_whatever_its_header_states(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"bomb.jpg": bytes(40_000_000), "white.bmp": bytes(10_000_000)})
    data = bytearray((folder / "a.zip").read_bytes())
    place = data.index(b"PK\1\2") + 24
    data[place : place + 4] = struct.pack("<I", 1000)  # claims a thousand bytes
    claims_little = put(tmp_path / "t", {}, "b.zip")
    (claims_little / "a.zip").write_bytes(data)
    found = outcome(folder)
    assert found["a.zip:bomb.jpg"] == "bomb"
    assert found["a.zip:white.bmp"] == bytes(10_000_000)  # a small drawing may shrink as it likes
    assert outcome(claims_little)["a.zip:bomb.jpg"] == "damaged"  # no more than it claims comes out


def test_a_zip_bomb_of_many_files_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_TOTAL_FREE_BYTES", 20_000_000)
    folder = put(tmp_path / "s", {f"{k}.bmp": bytes(10_000_000) for k in range(9)})
    with pytest.raises(DataError, match=r"s/a\.zip: unpacks to over 100 times its size"):
        outcome(folder)


def test_a_list_of_too_many_files_is_rejected_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path / "s", {f"{k:0100}.jpg": b"" for k in range(1000)})
    monkeypatch.setattr(archive, "_MAX_FILES", 999)
    with pytest.raises(DataError, match="lists over 999 files"):
        outcome(folder)
    monkeypatch.setattr(archive, "_MAX_FILES", 1000)
    monkeypatch.setattr(archive, "_MAX_DIRECTORY_BYTES", 140_000)
    with pytest.raises(DataError, match="lists over 1,000 files"):
        outcome(folder)


def test_a_file_over_the_limit_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"big.jpg": bytes(5_000_000)}, method=zipfile.ZIP_STORED)
    (folder / "loose.jpg").write_bytes(bytes(2000))
    assert outcome(folder, limit=1000) == {"a.zip:big.jpg": "too_many_bytes", "loose.jpg": "too_many_bytes"}


def test_names_contain_no_control_characters(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"a\rb\nc\x1b[31m.jpg": b"x", "né\u2028.jpg": b"y"})
    (folder / "odd\n.txt").write_bytes(b"z")
    (folder / os.fsdecode(b"no utf-8 \xff.txt")).write_bytes(b"z")
    names = sorted(place.replace("\ufffd", "?") for place in outcome(folder))
    assert names == ["a.zip:a?b?c?[31m.jpg", "a.zip:né?.jpg", "no utf-8 ?.txt", "odd?.txt"]


def test_a_file_with_an_empty_name_is_handled(tmp_path: Path) -> None:
    """Found by fuzzing: Python's `zipfile` fails on it."""
    folder = put(tmp_path / "s", {"x": b"1", "a.jpg": b"2"}, method=zipfile.ZIP_STORED)
    data = (folder / "a.zip").read_bytes()
    at = data.index(b"PK\1\2")  # the list of files: that of "x" loses its name's length and the name
    entry = bytearray(data[at : at + 47])
    assert entry[46:] == b"x"
    entry[28:30] = b"\0\0"
    end = bytearray(data[data.rindex(b"PK\5\6") :])
    size = int.from_bytes(end[12:16], "little") - 1
    end[12:16] = size.to_bytes(4, "little")
    rest = data[at + 47 : data.rindex(b"PK\5\6")]
    (folder / "a.zip").write_bytes(data[:at] + bytes(entry[:46]) + rest + bytes(end))
    assert outcome(folder) == {"a.zip:": "damaged", "a.zip:a.jpg": b"2"}


def test_a_truncated_zip_is_an_error_and_a_wrong_checksum_is_set_aside(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100}, method=zipfile.ZIP_STORED)
    data = bytearray((folder / "a.zip").read_bytes())
    data[60] ^= 1
    (folder / "a.zip").write_bytes(data)
    assert outcome(folder) == {"a.zip:a.jpg": "damaged", "a.zip:b.jpg": b"b" * 100}
    (folder / "a.zip").write_bytes(data[:200])
    with pytest.raises(DataError, match=r"was cut off \(200 bytes found\)"):
        outcome(folder)
