"""Fuzzing of zips, captions files and pictures: damage is accounted for, or the source is rejected with one line."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

from pipeline import ingest
from pipeline.config import params
from pipeline.config.errors import DataError
from pipeline.data.audit import read_set_aside
from pipeline.runtime.atomic_files import read_json
from tests.conftest import set_params

SECONDS = 20  # time limit for each of these small sources

# Inserted at random; parsers often fail on these.
TOKENS = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b'"',
        b'""',
        b"\r",
        b"\n",
        b",",
        b";",
        b"\t",
        b"PK\3\4",
        b"PK\1\2",
        b"PK\5\6",
    ),
    *(b"\xff\xd8\xff", b"../", b"[", b"{", b"\\ud83d", b"null", b"1e999", b"-1", b"\xf0\x9f\x94\xa5", b"\x80" * 9),
    *(b"\xff" * 4, b"\0" * 8, b"#" * 300, b"\xe2\x80\xa8", b"NaN", b'"a.jpg"'),
]


def picture(kind: str, colour: str) -> bytes:
    buffer = io.BytesIO()
    mode = {"GIF": "P", "TIFF": "CMYK", "PNG": "RGBA"}.get(kind, "RGB")
    Image.new("RGB", (24, 16), colour).convert(mode).save(buffer, kind)
    return buffer.getvalue()


PICTURES = {
    "a.jpg": picture("JPEG", "red"),
    "b.png": picture("PNG", "blue"),
    "c.gif": picture("GIF", "green"),
    "d.webp": picture("WEBP", "black"),
    "e.tif": picture("TIFF", "yellow"),
    "f.bmp": picture("BMP", "white"),
}
ROWS = [(name, f"a caption, “{name}” \U0001f525") for name in PICTURES]
TABLE = "image,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in ROWS)
CAPTIONS = {
    "captions.csv": TABLE.encode(),
    "captions.tsv": TABLE.replace(",", "\t").encode("utf-16"),
    "captions.txt": TABLE.replace("\n", "\r\n").encode("cp1252", "replace"),
    "Flickr8k.token.txt": "".join(f"{name}#0\t{caption}\n" for name, caption in ROWS).encode(),
    "metadata.jsonl": "".join(json.dumps({"file_name": n, "captions": [c, c]}) + "\n" for n, c in ROWS).encode(),
    "captions_x.json": json.dumps(
        {
            "images": [{"id": k, "file_name": name} for k, (name, _) in enumerate(ROWS)],
            "annotations": [{"image_id": k, "caption": caption} for k, (_, caption) in enumerate(ROWS)],
        }
    ).encode(),
    "dataset_x.json": json.dumps(
        {"images": [{"filename": name, "sentences": [{"raw": caption}]} for name, caption in ROWS]}
    ).encode(),
    "posts_1.json": json.dumps(
        [{"title": caption, "media": [{"uri": name}, {"uri": "a.jpg"}]} for name, caption in ROWS]
    ).encode(),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to four faults."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        # Prefer the end, which lists the files of a zip, and the start, which has the headers of a picture.
        at = rng.choice([at, min(at, 60), max(0, len(out) - rng.randint(0, 200))])
        some = rng.randint(1, 12)
        match rng.randrange(6):
            case 0:
                out[at : at + some] = rng.randbytes(len(out[at : at + some]))
            case 1:
                del out[at : at + some]
            case 2:
                out[at:at] = rng.choice(TOKENS)
            case 3:
                del out[at:]
            case 4:
                out[at:at] = out[at : at + rng.randint(1, 200)]
            case 5 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def zipped(files: dict[str, bytes], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make(folder: Path, rng: random.Random) -> None:
    """Write a source in one of the layouts, with a damaged zip, damaged captions or damaged pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = rng.choice(list(CAPTIONS))
    captions, pictures = CAPTIONS[name], dict(PICTURES)
    what = rng.choice(["zip", "captions", "pictures"])
    if what == "captions":
        captions = damaged(captions, rng)
    if what == "pictures":
        pictures = {name: damaged(data, rng) if rng.random() < 0.7 else data for name, data in pictures.items()}
    inside = rng.random() < 0.5
    archive = zipped(pictures | ({name: captions} if inside else {}), rng)
    (folder / "images.zip").write_bytes(damaged(archive, rng) if what == "zip" else archive)
    if not inside:
        (folder / name).write_bytes(captions)


def too_long(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def fuzz(workspace: Path, cases: range) -> tuple[int, int]:
    """Return how many of the cases were ingested, and how many were rejected."""
    set_params(workspace, {"ingest.sources": ["s"], "ingest.max_set_aside": 1.0})
    settings = params.load()
    ingested = rejected = 0
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        for case in cases:
            make(workspace / "data/raw/s", random.Random(case))
            signal.alarm(SECONDS)
            try:
                ingest.run(settings, Namespace(source="s"))
            except DataError as error:
                assert "\n" not in str(error).strip(), f"case {case}"  # noqa: PT017
                rejected += 1
                continue
            except BaseException as error:
                raise AssertionError(f"case {case}") from error
            finally:
                signal.alarm(0)
            report = read_json(Path("reports/ingest/s.json"))
            aside = list(read_set_aside(Path("data/ingest/s/set_aside.csv")))
            files, rows = report["files"], report["rows"]
            listed = {kind: sum(item.kind == kind for item in aside) for kind in ("file", "row")}
            assert files["in"] == files["captions_files"] + files["pictures_kept"] + listed["file"], f"case {case}"
            assert rows["in"] == rows["captions_kept"] + listed["row"], f"case {case}"
            ingested += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return ingested, rejected


def test_damaged_sources_are_accounted_for_or_rejected_with_one_line(workspace: Path) -> None:
    ingested, rejected = fuzz(workspace, range(400))
    assert ingested > 200
    assert rejected > 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_damaged_sources_are_handled(workspace: Path) -> None:
    ingested, rejected = fuzz(workspace, range(1000, 21_000))
    assert ingested > 9_000
    assert rejected > 2_000
    print(f"{ingested:,} ingested, {rejected:,} rejected")


def test_the_fuzzed_sources_are_valid_before_they_are_damaged(workspace: Path, bring: Callable[..., Path]) -> None:
    set_params(workspace, {"ingest.sources": ["s"]})
    for name, captions in CAPTIONS.items():
        folder = workspace / "data/raw/s"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "images.zip").write_bytes(zipped(PICTURES, random.Random(0)))
        (folder / name).write_bytes(captions)
        ingest.run(params.load(), Namespace(source="s"))
        report = read_json(Path("reports/ingest/s.json"))
        assert report["files"]["pictures_kept"] == 6, name
        assert report["rows"]["set_aside"] == {}, name
