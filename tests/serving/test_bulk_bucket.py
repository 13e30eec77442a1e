"""Bulk captions of pictures in an S3 bucket: moto's server, and one that fails in the ways that real ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.commands.caption import caption_photos
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.serving import bulk
from pipeline.serving.bulk_sources import UnreadableError, open_source
from tests.s3_store import Store, put, running_store
from tests.serving.conftest import Caption
from tests.serving.test_bulk import lines

NAMES = ["1.jpg", "deep/2.JPG", "deep/more/ü 3+%.png"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, pictures: list[bytes], tmp_path: Path) -> Iterator[Store]:
    with running_store(tmp_path, monkeypatch) as app:
        client = boto3.client("s3")
        client.create_bucket(Bucket="album")
        client.create_bucket(Bucket="bare")
        for name, picture in zip(NAMES, pictures, strict=False):
            client.put_object(Bucket="album", Key=f"photos/{name}", Body=picture)
        client.put_object(Bucket="album", Key="photos/", Body=b"")  # as the console makes a folder
        client.put_object(Bucket="album", Key="photos/notes.md", Body=b"not a picture")
        client.put_object(Bucket="album", Key="photos-of-others/9.jpg", Body=pictures[3])
        app.asked.clear()
        yield app


def test_the_pictures_below_a_prefix_are_captioned_one_by_one(
    caption: Caption, workspace: Path, store: Store, captioner: Any, pictures: list[bytes]
) -> None:
    last, _ = caption("s3://album/photos", Path("captions.jsonl"))
    found = {line["file_name"]: line for line in lines(Path("captions.jsonl"))}
    assert sorted(found) == NAMES
    assert last.startswith("3 pictures captioned (")
    Path("same").mkdir()
    for name, picture in zip(NAMES, pictures, strict=False):
        Path("same", name).parent.mkdir(parents=True, exist_ok=True)
        Path("same", name).write_bytes(picture)
    caption(Path("same"), Path("same.jsonl"))
    assert {line["file_name"]: line for line in lines(Path("same.jsonl"))} == found, "as from a folder"
    read = [asked for asked in store.asked if asked.startswith("GET /album/photos/")]
    assert len(read) == 3

    put("album", "photos/4.jpg", pictures[4])
    last, loads = caption("s3://album/photos/", Path("captions.jsonl"))
    assert (loads, "1 pictures captioned" in last, "3 captioned before" in last) == (1, True, True)
    last, loads = caption("s3://album/photos/", Path("captions.jsonl"))
    assert (loads, last) == (0, "0 pictures captioned, 4 captioned before: captions.jsonl")
    last, _ = caption("s3://album", Path("texts"))
    assert Path("texts/photos/deep/2.txt").exists()
    assert Path("texts/photos-of-others/9.txt").exists()
    last, _ = caption("s3://album/photos/1.jpg", Path("one.jsonl"))
    assert [line["file_name"] for line in lines(Path("one.jsonl"))] == ["1.jpg"]


def test_what_can_not_be_read_is_named_and_the_rest_is_captioned(
    caption: Caption, workspace: Path, store: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in {
        "../../out.jpg": b"x",
        "/root.jpg": b"x",
        "back\\slash.jpg": b"x",
        "empty.jpg": b"",
        "huge.jpg": b"x" * 70_000,
        "secret.jpg": b"x",
        "z.zip": b"PK",
    }.items():
        put("album", f"photos/{name}", body)
    monkeypatch.setattr(bulk, "_MAX_BYTES", 69_000)
    store.fails = lambda method, path: ("403 Forbidden", "InvalidObjectState") if path.endswith("secret.jpg") else None
    last, _ = caption("s3://album/photos", Path("texts"))
    said = capsys.readouterr().err
    assert last.startswith("3 pictures captioned (")
    assert "7 not readable" in last
    for words in ("'../../out.jpg': ", "'/root.jpg': ", r"'back\\slash.jpg': ", "empty.jpg: is empty", "huge.jpg: ",
                  "secret.jpg: access denied", "z.zip: archives in a bucket are not read"):  # fmt: skip
        assert f"caption: {words}" in said
    assert sorted(path.name for path in Path("texts").rglob("*.txt")) == ["1.txt", "2.txt", "ü 3+%.txt"]
    assert not list(Path().parent.rglob("out.txt"))


Fails = Callable[[str, str], tuple[str, str] | None]


def denied_list(method: str, path: str) -> tuple[str, str] | None:
    return ("403 Forbidden", "AccessDenied") if path.rstrip("/") == "/album" else None


def denied_objects(method: str, path: str) -> tuple[str, str] | None:
    return ("403 Forbidden", "AccessDenied") if path.startswith("/album/photos/") else None


def busy(method: str, path: str) -> tuple[str, str] | None:
    return ("503 Slow Down", "SlowDown") if path.startswith("/album/photos/") else None


@pytest.mark.parametrize(
    ("source", "fails", "kind", "why"),
    [
        ("s3://album/photos", denied_list, ConfigError, r"s3://album/photos: access denied .*s3:ListBucket"),
        ("s3://album/photos", denied_objects, ConfigError, r"s3://album/photos/\S+: access denied .*s3:GetObject"),
        ("s3://nowhere/photos", None, ConfigError, r"s3://nowhere/photos: not found .*check the bucket's name"),
        ("s3://UPPER CASE/photos", None, ConfigError, r"name it s3://BUCKET/PREFIX"),
        ("s3://", None, ConfigError, r"name it s3://BUCKET/PREFIX"),
        ("s3://album/none", None, DataError, r"s3://album/none: has no JPEG"),
        ("s3://bare", None, DataError, r"s3://bare: has no JPEG"),
        ("s3://album/photos", busy, TemporaryError, r"s3://album/photos/\S+: .*; captions so far are kept; run this"),
    ],
)
def test_a_bucket_that_can_not_be_used_is_one_line(
    caption: Caption, workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch, source: str, fails: Fails | None,
    kind: type[Exception], why: str,
) -> None:  # fmt: skip
    store.fails = fails or store.fails
    with pytest.raises(kind, match=why) as error:
        caption(source, Path("captions.jsonl"))
    assert "\n" not in str(error.value)


def test_a_store_that_is_busy_for_a_while_is_waited_for(caption: Caption, workspace: Path, store: Store) -> None:
    left = dict.fromkeys(NAMES, 2)

    def fails(method: str, path: str) -> tuple[str, str] | None:
        name = path.removeprefix("/album/photos/")
        left[name] = left.get(name, 0) - 1
        return ("503 Slow Down", "SlowDown") if left[name] >= 0 else None

    store.fails = fails
    last, _ = caption("s3://album/photos", Path("captions.jsonl"))
    assert last.startswith("3 pictures captioned (")


def test_without_credentials_or_a_server_it_is_one_line(
    caption: Caption, workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="found no credentials; set AWS_ACCESS_KEY_ID"):
        caption("s3://album/photos", Path("captions.jsonl"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match=r"s3://album/photos: .*127\.0\.0\.1:9"):
        caption("s3://album/photos", Path("captions.jsonl"))


def test_an_object_that_grew_since_the_listing_is_not_read_whole(store: Store, workspace: Path) -> None:
    with open_source("s3://album/photos") as source:
        put("album", "photos/1.jpg", b"x" * 1_000_000)
        with pytest.raises(UnreadableError, match="the file is too large"):
            source.read("1.jpg", 100_000)


def test_a_bucket_without_out_says_what_to_add(workspace: Path) -> None:
    with pytest.raises(DataError, match=r"add `--out captions\.jsonl` to caption a folder, zip or bucket"):
        caption_photos(params.load(), [Path("s3://album/photos")])
