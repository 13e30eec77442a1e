"""Bulk captions in XMP sidecars."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pipeline.config.errors import ConfigError
from pipeline.serving import bulk_sidecars
from pipeline.serving.bulk_sidecars import Sidecars
from pipeline.serving.xmp import described, description
from tests.conftest import run
from tests.serving.conftest import Caption
from tests.serving.test_bulk import NAMES, URI, lines
from tests.serving.test_xmp import sidecar

PLACES = {name: f"{name.replace('.zip:', '/')}.xmp" for name in NAMES}


def test_each_picture_gets_a_sidecar_and_a_line_with_the_model(caption: Caption, photos: Path) -> None:
    last, _ = caption(photos, Path("out"), sidecars=Sidecars.xmp)
    record = {line["file_name"]: line for line in lines(Path("out/captions.jsonl"))}
    assert sorted(record) == NAMES
    for name, place in PLACES.items():
        assert description(Path("out", place).read_bytes()) == record[name]["caption"]
        assert record[name]["model"] == URI
    assert last.startswith("4 pictures captioned (")
    before = {place: Path("out", place).read_bytes() for place in PLACES.values()}
    Path("out", PLACES["3.png"]).unlink()  # a kill came before it
    (photos / "cut.jpg").unlink()
    last, loads = caption(photos, Path("out"), sidecars=Sidecars.xmp)
    assert (loads, last) == (0, "0 pictures captioned, 4 captioned before: out")
    assert {place: Path("out", place).read_bytes() for place in PLACES.values()} == before
    caption(photos, Path("out"), sidecars=Sidecars.txt)
    assert Path("out/3.txt").read_text() == record["3.png"]["caption"] + "\n", "from the record, not captioned again"


def test_texts_and_properties_of_people_stay(caption: Caption, photos: Path, capsys: pytest.CaptureFixture) -> None:
    mine = '<d:description><rdf:Alt><rdf:li xml:lang="x-default">my own words</rdf:li></rdf:Alt></d:description>'
    places = [photos / "img/1.jpg.xmp", photos / "img/2.xmp", photos / "3.png.xmp"]
    for place, content in zip(places, (sidecar(mine), sidecar(), b"<!DOCTYPE x><x/>"), strict=True):
        place.write_bytes(content)
        place.chmod(0o640)
    last, _ = caption(photos, photos, sidecars=Sidecars.xmp)  # beside the pictures
    assert places[0].read_bytes() == sidecar(mine)
    record = {line["file_name"]: line["caption"] for line in lines(photos / "captions.jsonl")}
    assert sorted(record) == ["img/2.JPG", "more.zip:x/4.jpg"]
    assert places[1].read_bytes() == described(record["img/2.JPG"], sidecar())
    assert places[1].stat().st_mode & 0o777 == 0o640
    assert not (photos / "img/2.JPG.xmp").exists()
    assert places[2].read_bytes() == b"<!DOCTYPE x><x/>"
    assert last.startswith("2 pictures captioned (")
    assert "1 with a text of someone else left alone, 1 sidecars not readable, 1 not readable" in last
    assert f"{places[2]}: has a document type declaration, which is refused; left as it is" in capsys.readouterr().err
    assert not list(photos.rglob(".*"))


def test_a_sidecar_that_someone_writes_meanwhile_stays(
    caption: Caption, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = photos / "3.png.xmp", photos / "img/1.jpg.xmp"
    old.write_bytes(sidecar())
    link, copymode = os.link, bulk_sidecars.shutil.copymode

    def late_link(place: Path, target: Path) -> None:
        if target == new:
            target.write_bytes(described("just written"))
        link(place, target)

    def late_copymode(place: Path, target: Path) -> None:
        copymode(place, target)
        place.write_bytes(described("just changed", sidecar()))

    monkeypatch.setattr(bulk_sidecars.os, "link", late_link)
    monkeypatch.setattr(bulk_sidecars.shutil, "copymode", late_copymode)
    last, _ = caption(photos, photos, sidecars=Sidecars.xmp)
    assert description(new.read_bytes()) == "just written"
    assert description(old.read_bytes()) == "just changed"
    assert "2 with a text of someone else left alone" in last
    assert not list(photos.rglob(".*"))


def test_a_sidecar_is_not_written_through_a_link(caption: Caption, photos: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.xmp"
    elsewhere.write_bytes(sidecar())
    (photos / "3.png.xmp").symlink_to(elsewhere)
    last, _ = caption(photos, photos, sidecars=Sidecars.xmp)
    assert elsewhere.read_bytes() == sidecar()
    assert "1 sidecars not readable" in last


@pytest.mark.parametrize("sidecars", list(Sidecars))
def test_nothing_is_written_through_links_that_came_with_the_pictures(
    caption: Caption, photos: Path, tmp_path: Path, sidecars: Sidecars
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    places = {"xmp": photos / "3.png.xmp", "txt": photos / "3.txt"}
    (photos / f".{places[sidecars].name}.partial").symlink_to(elsewhere)
    caption(photos, photos, sidecars=sidecars)
    assert elsewhere.read_text() == "mine"
    assert places[sidecars].is_file()
    assert not places[sidecars].is_symlink()
    (photos / "captions.jsonl").unlink()
    (photos / "captions.jsonl").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"captions\.jsonl: is a link, which could lead anywhere"):
        caption(photos, photos, sidecars=sidecars)
    assert elsewhere.read_text() == "mine"


@pytest.mark.parametrize("sidecars", list(Sidecars))
def test_no_name_of_a_picture_leads_out_of_the_folder(
    caption: Caption, workspace: Path, tmp_path: Path, pictures: list[bytes], sidecars: Sidecars
) -> None:
    """A zip is shown as a folder, so that a colon after `.zip` turns into a slash."""
    outside = tmp_path / "outside"
    names = ["...zip:up.jpg", "..zip:../up.jpg", f".zip:{outside}/absolute.jpg", "in.jpg"]
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name, data in zip(names, pictures, strict=False):
            archive.writestr(name, data)
    before = set(tmp_path.rglob("*"))
    caption(Path("photos.zip"), Path("deep/out"), sidecars=sidecars)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path for path in new if workspace / "deep/out" in path.parents} == new
    assert len(new) == 5, "the record, and a sidecar of each"
    record = {line["file_name"] for line in lines(Path("deep/out/captions.jsonl"))}
    assert record == set(names)


@pytest.mark.parametrize("sidecars", list(Sidecars))
def test_pictures_whose_sidecars_would_clash_stop_nothing(
    caption: Caption, workspace: Path, pictures: list[bytes], sidecars: Sidecars
) -> None:
    names = ["a/1.jpg", "b.jpg", "b.png", "b.jpg.png", "c.jpg", "c.jpg.xmp/d.jpg", "c.txt/d.jpg"]
    for name, data in zip(names, pictures, strict=False):
        (Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("photos") / name).write_bytes(data)
    with zipfile.ZipFile("photos/a.zip", "w") as archive:
        archive.writestr("1.jpg", pictures[7])
    last, _ = caption(Path("photos"), Path("out"), sidecars=sidecars)
    assert last.startswith("8 pictures captioned (")
    assert "1 sidecars not readable" in last
    written = [path for path in Path("out").rglob("*") if path.is_file()]
    assert len(written) == 8, "the record, and a sidecar for each of the other seven"


@pytest.mark.parametrize("sidecars", list(Sidecars))
def test_a_name_that_is_too_long_for_the_disk_stops_nothing(
    caption: Caption, photos: Path, pictures: list[bytes], sidecars: Sidecars
) -> None:
    long = photos / f"{'n' * 248}.jpg"
    long.write_bytes(pictures[5])
    last, _ = caption(photos, Path("out"), sidecars=sidecars)
    assert "1 sidecars not readable" in last
    assert len(lines(Path("out/captions.jsonl"))) >= len(NAMES)


def test_sidecars_need_a_folder(caption: Caption, photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out captions\.jsonl: is a file; for --sidecars xmp name a folder"):
        caption(photos, Path("captions.jsonl"), sidecars=Sidecars.xmp)
    done = run(Path(), "image-captioning", "caption", "photos/3.png", "--sidecars", "xmp")
    assert done.returncode == 78
    assert done.stderr == "caption: --sidecars xmp: needs --out; add it, or leave this out\n"
