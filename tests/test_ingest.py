from __future__ import annotations

import csv
import io
import re
import shutil
import struct
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import ingest
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError
from pipeline.data import images
from pipeline.data.audit import FILE_REASONS, ROW_REASONS, read_set_aside
from pipeline.data.dataset import PictureReader, read_ingested
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, SHARED, jpeg, run, set_params

Bring = Callable[..., Path]


def ingest_source(name: str) -> dict:
    set_params(Path.cwd(), {"ingest.sources": [name]})
    ingest.run(params.load(), Namespace(source=name))
    return read_json(Path(f"reports/ingest/{name}.json"))


def aside(name: str) -> list[tuple[str, str, str]]:
    with Path(f"data/ingest/{name}/set_aside.csv").open(newline="") as file:
        return [
            (row["kind"], row["file"] if row["kind"] == "file" else row["row"], row["reason"])
            for row in csv.DictReader(file)
        ]


def test_every_fault_of_the_sample_is_accounted_for(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    report = ingest_source("sample")
    assert report["files"]["set_aside"] == {
        "damaged": 1,
        "no_caption": 1,
        "not_a_picture": 1,
        "not_a_picture_file": 2,
        "same_bytes": 1,
    }
    assert report["rows"]["set_aside"] == {"empty": 2, "malformed": 1, "picture_missing": 1, "picture_set_aside": 2}
    assert report["files"]["in"] == 47
    assert report["files"]["pictures_kept"] == 40
    assert report["rows"]["in"] == report["rows"]["captions_kept"] + 6


def test_the_same_sample_gives_the_same_bytes(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=12, seed=3)
    ingest_source("sample")
    first = sha256_of(Path("data"), Path("reports"))
    ingest_source("sample")
    assert sha256_of(Path("data"), Path("reports")) == first


def test_files_with_the_same_bytes_become_one_picture_with_all_captions(workspace: Path, bring: Bring) -> None:
    same = jpeg("blue")
    bring("s", {"bare.jpg": same, "a.jpg": same, "b.jpg": same}, [["b.jpg", "from b"], ["a.jpg", "from a"]])
    report = ingest_source("s")
    (record,) = read_ingested(Path("data/ingest/s"))
    assert [row.text for row in record.captions] == ["from a", "from b"]
    assert report["files"]["set_aside"] == {"same_bytes": 2}
    assert report["rows"] == {"in": 2, "captions_kept": 2, "set_aside": {}}


def test_a_damaged_picture_is_set_aside_with_its_captions_and_copies(workspace: Path, bring: Bring) -> None:
    cut = jpeg(size=(900, 900))[:3000]
    bring(
        "s",
        {"good.jpg": jpeg(), "cut.jpg": cut, "copy.jpg": cut},
        [["good.jpg", "x"], ["cut.jpg", "y"], ["copy.jpg", "z"]],
    )
    set_params(workspace, {"ingest.max_set_aside": 0.7})
    report = ingest_source("s")
    assert report["files"]["set_aside"] == {"damaged": 2}
    assert report["rows"]["set_aside"] == {"picture_set_aside": 2}


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("pictures", "4 of 7 pictures would be set aside (4 no_caption)"),
        ("rows", "4 of 7 rows would be set aside (4 picture_missing; captions.csv, row 5 names '3.jpg'"),
    ],
)
def test_if_too_much_would_be_set_aside_the_run_stops_and_changes_nothing(
    workspace: Path, bring: Bring, lost: str, words: str
) -> None:
    bring("s", {"a.jpg": jpeg()}, [["a.jpg", "good"]])
    good = ingest_source("s")
    shutil.rmtree(workspace / "data/raw/s")
    files = {f"{k}.jpg": jpeg(size=(40 + k, 30)) for k in range(7 if lost == "pictures" else 3)}
    forks = {f"__MACOSX/._{k}.jpg": b"fork" for k in range(20)}  # of which nothing is lost
    rows = [[f"{k}.jpg", "x"] for k in range(7 if lost == "rows" else 3)]
    bring("s", {**files, **forks}, rows)
    with pytest.raises(DataError, match=re.escape(words)) as raised:
        ingest_source("s")
    assert "ingest.max_set_aside = 0.5" in str(raised.value)
    assert read_json(Path("reports/ingest/s.json")) == good
    set_params(workspace, {"ingest.max_set_aside": 0.6})
    assert ingest_source("s")["files"]["pictures_kept"] == 3


def test_names_are_found_with_or_without_folder_and_suffix(workspace: Path, bring: Bring) -> None:
    files = {"Images/one.JPG": jpeg("red"), "Images/two.png": jpeg("blue"), "deep/er/three.jpg": jpeg("green")}
    rows = [["one.jpg", "a"], ["Images/two", "b"], ["three", "c"], ["Images\\one.jpg", "d"]]
    bring("s", files, rows)
    assert ingest_source("s")["rows"]["captions_kept"] == 4


def test_unusual_file_names_are_handled(workspace: Path, bring: Bring) -> None:
    names = [
        "a/..jpg",
        "../climb.jpg",
        "/root.jpg",
        "a//b.jpg",
        "x.JPG.jpg",
        ".jpg",
        "C:\\dir\\win.jpg",
        "né\u0301.jpg",
    ]
    files = {name: jpeg("red", (20 + k, 20)) for k, name in enumerate(names)}
    bring("s", files, [[name, f"caption {k}"] for k, name in enumerate(names)])
    report = ingest_source("s")
    assert report["files"]["pictures_kept"] == report["rows"]["captions_kept"] == 4
    # ".jpg" is all suffix, no name
    assert report["files"]["set_aside"] == {"not_a_picture_file": 1, "unsafe_path": 3}
    assert report["rows"]["set_aside"] == {"picture_missing": 1, "picture_set_aside": 3}
    assert not (workspace.parent / "climb.jpg").exists()


def test_a_name_in_another_folder_is_another_picture(workspace: Path, bring: Bring) -> None:
    files = {"train/1.jpg": jpeg("red"), "wrap/img/2.jpg": jpeg("blue")}
    bring("s", files, [["test/1.jpg", "not this one"], ["img/2.jpg", "this one"]])
    assert ingest_source("s")["rows"] == {"in": 2, "captions_kept": 1, "set_aside": {"picture_missing": 1}}


def test_an_exact_name_wins_over_one_that_differs_in_case_or_composition(workspace: Path, bring: Bring) -> None:
    files = {"IMG.jpg": jpeg("red"), "img.jpg": jpeg("blue"), "cafe\u0301.jpg": jpeg("green")}
    bring("s", files, [["IMG.jpg", "large"], ["img.jpg", "small"], ["caf\u00e9.JPG", "composed"]])
    ingest_source("s")
    found = {r.origin: r.captions[0].text for r in read_ingested(Path("data/ingest/s"))}
    assert list(found.values()) == ["large", "small", "composed"]
    assert found["images.zip:IMG.jpg"] == "large"


def test_an_unquoted_caption_with_a_comma_is_not_truncated_silently(workspace: Path, bring: Bring) -> None:
    rows = [["a.jpg", "A dog", " a cat"], ["a.jpg", "fine", "", ""]]
    bring("s", {"a.jpg": jpeg()}, rows)
    assert ingest_source("s")["rows"] == {"in": 2, "captions_kept": 1, "set_aside": {"malformed": 1}}


def test_a_source_that_is_not_in_params_is_rejected_and_nothing_is_changed(workspace: Path, bring: Bring) -> None:
    folder = bring("s", {"a.jpg": jpeg()}, [["a.jpg", "x"]])
    before = sha256_of(folder)
    for name in ("../raw/s", "s/", "other"):
        done = run(workspace, sys.executable, "-m", "pipeline.ingest", name)
        assert done.returncode == 78
        assert "ingest.sources" in done.stderr
    assert sha256_of(folder) == before


@pytest.mark.parametrize("damages", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_zips_are_errors_or_set_aside_but_never_crash(workspace: Path, bring: Bring, damages: int) -> None:
    """Random bytes are changed, most of them in the list of files with its flags and sizes."""
    set_params(workspace, {"ingest.sources": ["s"]})
    folder = bring("s", {"a.jpg": jpeg("red"), "né.jpg": jpeg("blue")}, [["a.jpg", "x"], ["né.jpg", "y"]])
    good = (folder / "images.zip").read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(damages):
        data = bytearray(good)
        for at in rng.integers(len(data) - 200, len(data), 2):
            data[at] = rng.integers(256)
        data[rng.integers(40)] = rng.integers(256)
        (folder / "images.zip").write_bytes(data)
        try:
            ingest.run(params.load(), Namespace(source="s"))
        except DataError:
            told += 1
    assert told > damages // 20


def test_an_ambiguous_name_is_set_aside(workspace: Path, bring: Bring) -> None:
    bring("s", {"a/x.jpg": jpeg("red"), "b/x.jpg": jpeg("blue")}, [["x.jpg", "which?"], ["a/x.jpg", "this"]])
    report = ingest_source("s")
    assert report["rows"]["set_aside"] == {"picture_ambiguous": 1}
    assert ("file", "images.zip:b/x.jpg", "no_caption") in aside("s")


def test_pictures_are_reduced_upright_and_rgb_without_metadata(workspace: Path, bring: Bring) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010F] = "a camera that nobody needs to know"
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 600), "green").save(buffer, "JPEG", exif=exif)
    bring("s", {"turned.jpg": buffer.getvalue(), "small.jpg": jpeg()}, [["turned.jpg", "x"], ["small.jpg", "y"]])
    ingest_source("s")
    turned, small = read_ingested(Path("data/ingest/s"))
    assert (turned.width, turned.height) == (256, 512)
    assert (small.width, small.height) == (40, 30)
    data = PictureReader(Path("data/ingest/s")).read(turned.file_name)
    assert b"camera" in buffer.getvalue()
    assert b"camera" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"


def test_too_many_pixels_are_rejected_by_the_header(workspace: Path, bring: Bring) -> None:
    huge = bytearray(jpeg())
    place = huge.index(b"\xff\xc0") + 5
    huge[place : place + 4] = struct.pack(">HH", 60_000, 60_000)  # claims 3.6 gigapixels
    bring("s", {"huge.jpg": bytes(huge), "good.jpg": jpeg()}, [["huge.jpg", "x"], ["good.jpg", "y"]])
    assert ingest_source("s")["files"]["set_aside"] == {"too_many_pixels": 1}


def test_a_wrong_checksum_is_set_aside(workspace: Path, bring: Bring) -> None:
    folder = bring("s", {"a.jpg": jpeg("red"), "b.jpg": jpeg("blue")}, [["a.jpg", "x"], ["b.jpg", "y"]])
    data = bytearray((folder / "images.zip").read_bytes())
    data[100] ^= 0xFF
    (folder / "images.zip").write_bytes(data)
    assert ingest_source("s")["files"]["set_aside"] == {"damaged": 1}


def test_unusual_captions_are_kept(workspace: Path, bring: Bring) -> None:
    rows = [
        ["a.jpg", "line\nbreak, and a comma"],
        ["a.jpg", 'a "quoted" 🐕‍🦺'],
        ["a.jpg", "\u2028\u200d"],
        ["a.jpg", "   "],
    ]
    bring("s", {"a.jpg": jpeg()}, rows)
    report = ingest_source("s")
    assert report["rows"]["in"] == 4
    assert report["rows"]["set_aside"] == {"empty": 1}


@pytest.mark.parametrize(
    ("files", "rows", "words"),
    [
        ({"a.jpg": jpeg()}, None, ["1 .jpg (like images.zip:a.jpg)", "no captions", "captions_*.json"]),
        ({"a.jpg": jpeg()}, [["lost.jpg", "x"]], ["no picture with a caption", "1 picture_missing"]),
        ({}, [["a.jpg", "x"]], ["no picture with a caption"]),
    ],
)
def test_a_source_without_usable_pictures_is_rejected(
    workspace: Path, bring: Bring, files: dict[str, bytes], rows: list[list[str]] | None, words: list[str]
) -> None:
    bring("s", files, rows)
    with pytest.raises(DataError) as caught:
        ingest_source("s")
    for word in words:
        assert word in str(caught.value)


def test_bad_input_exits_with_65_and_one_line_and_keeps_the_last_good_run(workspace: Path, bring: Bring) -> None:
    folder = bring("s", {"a.jpg": jpeg()}, [["a.jpg", "x"]])
    ingest_source("s")
    before = sha256_of(Path("data/ingest"), Path("reports"))
    cases = {
        "captions.csv": [
            b"picture,words\na.jpg,x\n",
            b"",
            b"image,caption\na.jpg,caf\xc3\xa9 n\xc3\xa9 \xff\n",
            b'image,caption\na,"b\n',
        ],
        "images.zip": [b"no zip at all", (folder / "images.zip").read_bytes()[:50]],
    }
    for name, contents in cases.items():
        good = (folder / name).read_bytes()
        for content in contents:
            (folder / name).write_bytes(content)
            done = run(workspace, sys.executable, "-m", "pipeline.ingest", "s")
            assert done.returncode == 65, done.stderr
            assert done.stderr.count("\n") == 1
            assert name in done.stderr
            assert sha256_of(Path("data/ingest"), Path("reports")) == before
        (folder / name).write_bytes(good)
    set_params(workspace, {"ingest.sources": ["nowhere"]})
    missing = run(workspace, sys.executable, "-m", "pipeline.ingest", "nowhere")
    assert missing.returncode == 65
    assert "data/raw/nowhere: not found" in missing.stderr


def test_captions_files_of_two_layouts_are_listed(workspace: Path, bring: Bring) -> None:
    folder = bring("s", {"a.jpg": jpeg()}, [["a.jpg", "x"]])
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"several layouts: captions\.csv \(table\), metadata\.jsonl \(imagefolder\)"):
        ingest_source("s")


def test_pictures_of_the_last_run_are_reused_without_decoding(
    workspace: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{k}.jpg": jpeg("red", (40 + k, 30)) for k in range(6)}
    rows = [[name, f"caption of {name}"] for name in files]
    bring("grown", files, rows)
    ingest_source("grown")
    anew = sha256_of(Path("data/ingest"), Path("reports"))
    shutil.rmtree(workspace / "data")
    bring("grown", dict(list(files.items())[:5]), rows[:5])
    ingest_source("grown")
    shutil.rmtree(workspace / "data/raw")
    bring("grown", files, rows)
    decoded = []
    normalise = images.normalise
    monkeypatch.setattr(images, "normalise", lambda *args: decoded.append(1) or normalise(*args))
    ingest_source("grown")
    assert len(decoded) == 1
    assert sha256_of(Path("data/ingest"), Path("reports")) == anew
    # Another size is another picture, and what is damaged is made anew.
    set_params(workspace, {"ingest.image_size": 20})
    ingest_source("grown")
    assert len(decoded) == 7
    for damaged in (b"", b"PK"):
        Path("data/ingest/grown/pictures-0000.zip").write_bytes(damaged)
        ingest_source("grown")
    Path("data/ingest/grown/records.jsonl").write_text("{")
    ingest_source("grown")
    assert len(decoded) == 7 + 3 * 6


def kaggle(folder: Path, wrapper: str = "") -> None:
    folder.mkdir(parents=True)
    first = "Sr No,Image File,Caption\n1,img/insta1,one \n2,img/insta2,\n"
    second = '1,img2/insta1,"two\nlines #tag"\n2,img2/insta9,lost\n'
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr(f"{wrapper}instagram_data/captions_csv.csv", first)
        archive.writestr(f"{wrapper}instagram_data/img/insta1.jpg", jpeg("red"))
        archive.writestr(f"{wrapper}instagram_data/img/insta2.jpg", jpeg("blue"))
        archive.writestr(f"{wrapper}instagram_data2/captions_csv2.csv", second)
        archive.writestr(f"{wrapper}instagram_data2/img2/insta1.jpg", jpeg("green"))


@pytest.mark.parametrize("wrapper", ["", "instagram/"])
def test_kaggles_instagram_archive_is_read_unchanged(workspace: Path, wrapper: str) -> None:
    kaggle(workspace / "data/raw/kaggle", wrapper)
    report = ingest_source("kaggle")
    assert report["rows"] == {"in": 4, "captions_kept": 2, "set_aside": {"empty": 1, "picture_missing": 1}}
    assert report["files"]["captions_files"] == 2
    captions = {r.origin.rpartition("/")[0]: r.captions[0].text for r in read_ingested(Path("data/ingest/kaggle"))}
    assert captions[f"archive.zip:{wrapper}instagram_data2/img2"] == "two\nlines #tag"


def test_flickr8k_from_kaggle_is_read_unchanged(workspace: Path, bring: Bring) -> None:
    rows = [["1_a.jpg", f"Caption {k} ."] for k in range(5)]
    bring("f", {"Images/1_a.jpg": jpeg()}, rows, table="captions.txt")
    assert ingest_source("f")["rows"]["captions_kept"] == 5


@pytest.mark.real
def test_real_flickr8k_is_ingested_completely(workspace: Path) -> None:
    folder = workspace / "data/raw/flickr"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(SHARED / "flickr8k_500")
    report = ingest_source("flickr")
    assert report["files"]["pictures_kept"] == 500
    assert report["rows"] == {"in": 2500, "captions_kept": 2500, "set_aside": {}}
    sizes = [min(r.width, r.height) for r in read_ingested(Path("data/ingest/flickr"))]
    assert max(sizes) == 256


def test_pictures_of_phones_and_browsers_are_read(workspace: Path, bring: Bring) -> None:
    kinds = {"a.HEIC": "HEIF", "b.heif": "HEIF", "c.avif": "AVIF", "d.jfif": "JPEG", "e.jpg": "HEIF"}
    files = {}
    for k, (name, kind) in enumerate(kinds.items()):
        Image.new("RGB", (60 + k, 40), "green").save(buffer := io.BytesIO(), kind)
        files[name] = buffer.getvalue()
    bring("s", files, [[name, "x"] for name in files])
    report = ingest_source("s")
    assert report["files"]["pictures_kept"] == 5
    assert report["rows"]["set_aside"] == {}


def test_a_row_that_names_a_file_in_an_unsupported_format_is_not_called_missing(workspace: Path, bring: Bring) -> None:
    files = {"a.jpg": jpeg(), "raw/b.CR2": b"raw", "c.svg": b"<svg/>"}
    bring("s", files, [["a.jpg", "x"], ["b.CR2", "y"], ["c", "z"], ["lost.jpg", "w"]])
    set_params(workspace, {"ingest.max_set_aside": 0.8})
    report = ingest_source("s")
    assert report["files"]["set_aside"] == {"unsupported_format": 2}
    assert report["rows"]["set_aside"] == {"picture_missing": 1, "picture_set_aside": 2}
    rows = [item for item in read_set_aside(Path("data/ingest/s/set_aside.csv")) if item.kind == "row"]
    assert [(item.row, item.names) for item in rows] == [(3, "b.CR2"), (4, "c"), (5, "lost.jpg")]


def test_a_run_that_stops_lists_what_it_would_set_aside_and_shows_a_missing_name(workspace: Path, bring: Bring) -> None:
    bring("s", {"img/photo-1.jpg": jpeg(), "z.jpg": jpeg("blue")}, [["photo_1.jpg", "x"], ["gone.jpg", "y"]])
    listed = Path(".work/set_aside/s.csv")
    with pytest.raises(DataError) as caught:
        ingest_source("s")
    assert "captions.csv, row 2 names 'photo_1.jpg', and the source has images.zip:img/photo-1.jpg" in str(caught.value)
    assert str(listed) in str(caught.value)
    items = list(read_set_aside(listed))
    assert [(item.kind, item.file, item.reason, item.names) for item in items] == [
        ("row", "captions.csv", "picture_missing", "photo_1.jpg"),
        ("row", "captions.csv", "picture_missing", "gone.jpg"),
        ("file", "images.zip:img/photo-1.jpg", "no_caption", ""),
        ("file", "images.zip:z.jpg", "no_caption", ""),
    ]
    shutil.rmtree(workspace / "data/raw/s")
    bring("s", {"a.jpg": jpeg()}, [["a.jpg", "x"]])
    ingest_source("s")
    assert not listed.exists()


def test_small_pictures_are_set_aside(workspace: Path, bring: Bring) -> None:
    files = {"icon.jpg": jpeg(size=(200, 31)), "good.jpg": jpeg("blue", (200, 32))}
    bring("s", files, [["icon.jpg", "x"], ["good.jpg", "y"]])
    set_params(workspace, {"ingest.min_side": 32})
    assert ingest_source("s")["files"]["set_aside"] == {"too_small": 1}
    set_params(workspace, {"ingest.image_size": 16})
    with pytest.raises(ConfigError, match="`min_side` is more than `image_size`"):
        ingest_source("s")


def test_every_described_reason_is_used() -> None:
    files = [
        *("ingest.py", "build.py", "data/images.py", "data/merged.py"),
        *(f"data/sources/{name}.py" for name in ("archive", "corrections", "matching", "picture_index")),
    ]
    source = "".join((ROOT / "pipeline" / file).read_text() for file in files)
    for reason in FILE_REASONS | ROW_REASONS:
        assert f'"{reason}"' in source


def test_ingest_image_size_is_a_param(workspace: Path, bring: Bring) -> None:
    set_params(workspace, {"ingest.image_size": 64})
    bring("s", {"a.jpg": jpeg(size=(300, 200))}, [["a.jpg", "x"]])
    ingest_source("s")
    (record,) = read_ingested(Path("data/ingest/s"))
    assert (record.width, record.height) == (96, 64)


def test_a_full_disk_is_an_error_and_keeps_the_last_good_run(workspace: Path, tmp_path: Path) -> None:
    """Uses a real file system of 2 MB, which only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = run(tmp_path, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        write_sample(workspace / "data/raw/small", pictures=40)
        write_sample(workspace / "data/raw/large", pictures=1500)
        for name in ("ingest", "work"):
            (disk / name).mkdir()
        (workspace / "data/ingest").symlink_to(disk / "ingest")
        ingest_source("small")
        (workspace / "data/raw/small").rename(workspace / "data/raw/before")
        (workspace / "data/raw/large").rename(workspace / "data/raw/small")
        before = sha256_of(Path("data/ingest/small"), Path("reports"))
        done = run(workspace, sys.executable, "-m", "pipeline.ingest", "small")
        assert done.returncode == 75, done.stderr
        assert done.stderr.count("\n") == 1
        assert "the disk is full" in done.stderr
        assert sha256_of(Path("data/ingest/small"), Path("reports")) == before
        assert [p.name for p in (disk / "ingest").iterdir()] == ["small"]
    finally:
        run(tmp_path, "umount", str(disk))


def test_a_text_of_millions_of_characters_is_cut_when_it_is_read(workspace: Path, bring: Callable[..., Path]) -> None:
    bring("s", {"a.jpg": jpeg()}, [["a.jpg", "long " * 1_200_000]])
    set_params(workspace, {"ingest.sources": ["s"]})
    ingest.run(params.load(), Namespace(source="s"))
    (record,) = read_ingested(Path("data/ingest/s"))
    assert len(record.captions[0].text) == 5_000_001
