from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.commands.caption import caption_folder, caption_photos
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.data.images import decode
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.serving import bulk, bulk_outputs, bulk_sidecars
from tests.conftest import ROOT, environment, jpeg, run, set_params
from tests.serving.conftest import URI

NAMES = ["3.png", "img/1.jpg", "img/2.JPG", "more.zip:x/4.jpg"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().splitlines()]


def test_each_picture_gets_one_line_with_its_caption_and_model(
    caption, photos: Path, captioner: Captioner, capsys, pictures: list[bytes]
) -> None:
    last, _ = caption(photos, Path("captions.jsonl"))
    found = {line["file_name"]: line for line in lines(Path("captions.jsonl"))}
    assert sorted(found) == NAMES
    assert {line["model"] for line in found.values()} == {URI}
    assert all(line["score"] < 0 and len(line["sha256"]) == 64 for line in found.values())
    alone = captioner.scored([captioner.prepare(decode(pictures[0], 10**9))], [0], count=1, beams=1, sampling=False)
    assert found["img/1.jpg"]["caption"] == alone[0][0].text
    assert last.startswith("4 pictures captioned (")
    assert last.endswith("1 not readable: captions.jsonl")
    assert "cut.jpg: is cut off or damaged; skipped" in capsys.readouterr().err


def test_pictures_are_decoded_under_the_memory_budget(
    caption, photos: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of one byte lets pictures through one at a time; each reserves what decoding takes."""
    asked: list[int] = []

    class Recorded(MemoryBudget):
        def reserve(self, size: int) -> AbstractContextManager[None]:
            asked.append(size)
            return super().reserve(size)

    monkeypatch.setattr(bulk, "MemoryBudget", Recorded)
    set_params(Path(), {"runtime.memory_gb": 1e-9})
    last, _ = caption(photos, Path("captions.jsonl"))
    assert last.startswith("4 pictures captioned (")
    assert len(asked) == 5  # the damaged one too
    assert min(asked) > len(pictures[0])


def test_a_folder_with_the_list_of_a_bucket_is_refused(caption, photos: Path) -> None:
    (photos / "bucket.jsonl").write_text('{"bucket": "s3://private/photos", "table": null}\n')
    with pytest.raises(ConfigError, match=r"bucket\.jsonl: would be read as the list of a bucket"):
        caption(photos, Path("captions.jsonl"))
    assert not Path("captions.jsonl").exists()


def test_running_it_again_captions_only_new_pictures(caption, photos: Path) -> None:
    out = Path("captions.jsonl")
    caption(photos, out)
    before = out.read_bytes()
    (photos / "cut.jpg").unlink()
    last, loads = caption(photos, out)
    assert (last, loads) == ("0 pictures captioned, 4 captioned before: captions.jsonl", 0)
    assert out.read_bytes() == before
    (photos / "5.jpg").write_bytes(jpeg())
    caption(photos, out, uri="models:/toy/2")
    assert out.read_bytes().startswith(before)
    assert [(line["file_name"], line["model"]) for line in lines(out)[4:]] == [("5.jpg", "models:/toy/2")]


@pytest.mark.parametrize(
    "torn", ['{"file_name": "img/1.jpg", "capt', '{"file_name": "img/1.jpg"', '{"file_name"\xe4', '{"fi', "\0\0\0"]
)
def test_a_torn_last_line_is_cut(caption, photos: Path, torn: str) -> None:
    out = Path("captions.jsonl")
    out.write_bytes(b'{"file_name": "3.png", "caption": "mine"}\n' + torn.encode("latin-1"))
    last, _ = caption(photos, out)
    assert sorted(line["file_name"] for line in lines(out)) == NAMES
    assert lines(out)[0] == {"file_name": "3.png", "caption": "mine"}
    assert "1 with a text of someone else left alone" in last


def test_a_whole_last_line_without_its_line_feed_is_kept(caption, photos: Path) -> None:
    out = Path("captions.jsonl")
    out.write_text('{"file_name": "3.png", "caption": "mine"}')
    caption(photos, out)
    assert lines(out)[0] == {"file_name": "3.png", "caption": "mine"}
    assert len(lines(out)) == 4


@pytest.mark.parametrize(
    "content", ["my notes\nmore\n", "my notes\nmore", '[\n{"file_name": "1.jpg"}\n]', '{"images": []}']
)
def test_a_file_of_something_else_is_left_as_it_is(caption, photos: Path, content: str) -> None:
    out = Path("captions.jsonl")
    out.write_text(content)
    with pytest.raises(DataError, match=r"captions\.jsonl:1: is not a JSON object with a file_name"):
        caption(photos, out)
    assert out.read_text() == content


def test_text_files_of_people_are_left_alone(caption, photos: Path) -> None:
    out = photos  # beside the pictures
    (photos / "img" / "1.txt").write_text("a person's words")
    last, _ = caption(photos, out)
    assert (photos / "img" / "1.txt").read_text() == "a person's words"
    record = {line["file_name"]: line for line in lines(photos / "captions.jsonl")}
    for name, text in {"3.png": "3.txt", "img/2.JPG": "img/2.txt", "more.zip:x/4.jpg": "more/x/4.txt"}.items():
        assert (photos / text).read_text() == record[name]["caption"] + "\n"
    assert sorted(record) == [name for name in NAMES if name != "img/1.jpg"]
    assert last.startswith("3 pictures captioned (")
    assert "1 with a text of someone else left alone" in last
    assert not list(photos.rglob(".*"))

    (photos / "3.txt").write_text("corrected by a person")
    (photos / "cut.jpg").unlink()
    last, loads = caption(photos, out)
    assert (last, loads) == (
        "0 pictures captioned, 3 captioned before, 1 with a text of someone else left alone: " + str(photos), 0,
    )  # fmt: skip
    assert (photos / "3.txt").read_text() == "corrected by a person"


def test_a_text_that_a_person_writes_meanwhile_is_left_alone(
    caption, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(place: Path, target: Path) -> None:
        if target.name == "3.txt":
            target.write_text("just written")
        link(place, target)

    monkeypatch.setattr(bulk_sidecars.os, "link", late)
    last, _ = caption(photos, Path("texts"))
    assert Path("texts/3.txt").read_text() == "just written"
    assert "1 with a text of someone else left alone" in last
    assert not list(Path("texts").rglob(".*"))


def test_a_text_that_a_kill_left_out_is_written_from_the_record(caption, photos: Path) -> None:
    (photos / "cut.jpg").unlink()
    caption(photos, Path("texts"))
    before = Path("texts/3.txt").read_text()
    Path("texts/3.txt").unlink()
    _, loads = caption(photos, Path("texts"))
    assert loads == 0
    assert Path("texts/3.txt").read_text() == before


def test_pictures_of_one_name_get_a_text_each(caption, photos: Path, pictures: list[bytes]) -> None:
    (photos / "3.jpg").write_bytes(pictures[5])
    caption(photos, Path("texts"))
    assert Path("texts/3.jpg.txt").exists()
    assert Path("texts/3.png.txt").exists()
    assert not Path("texts/3.txt").exists()


def test_parquet_is_written_whole_and_continued(caption, photos: Path) -> None:
    from pyarrow import parquet

    out = Path("captions.parquet")
    caption(photos, out, several=3)
    rows = parquet.read_table(out).to_pylist()
    assert sorted(row["file_name"] for row in rows) == NAMES
    assert any(row["captions"] and len(row["captions"]) > 1 for row in rows)
    (photos / "5.jpg").write_bytes(jpeg())
    caption(photos, out, uri="models:/toy/2")
    assert parquet.read_table(out).to_pylist()[:4] == rows
    assert parquet.read_table(out).to_pylist()[4]["model"] == "models:/toy/2"
    assert not list(Path().glob(".captions*"))


def test_captions_of_a_killed_parquet_run_are_not_computed_again(
    caption, photos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    class KilledError(Exception):
        pass

    (photos / "cut.jpg").unlink()
    calls: list[int] = []
    scored = captioner.scored

    def killed(prepared, *arguments, **options):
        calls.append(len(prepared))
        if len(calls) == 2:
            raise KilledError
        return scored(prepared, *arguments, **options)

    monkeypatch.setattr(captioner, "scored", killed)
    with pytest.raises(KilledError):
        caption(photos, Path("captions.parquet"))
    assert not Path("captions.parquet").exists()
    last, _ = caption(photos, Path("captions.parquet"))
    assert "2 captioned before" in last
    assert calls == [2, 2, 2]
    assert len(parquet.read_table("captions.parquet")) == 4


def test_a_zip_is_captioned_without_unpacking_and_its_traps_are_named(
    caption, workspace: Path, pictures: list[bytes], capsys
) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("a/1.jpg", pictures[0])
        archive.writestr("../../out.jpg", pictures[1])
    (workspace.parent / "out.txt").write_text("outside")
    last, _ = caption(Path("photos.zip"), Path("deep/down/texts"))
    assert Path("deep/down/texts/a/1.txt").exists()
    assert "1 not readable" in last
    assert "path traversal" in capsys.readouterr().err
    assert [line["file_name"] for line in lines(Path("deep/down/texts/captions.jsonl"))] == ["a/1.jpg"]


def test_what_cannot_be_captioned_is_said(caption, photos: Path) -> None:
    with pytest.raises(ConfigError, match="name one folder or"):
        caption(photos / "3.png", Path("captions.jsonl"))
    with pytest.raises(ConfigError, match=r"captions\.csv: name a \.jsonl or \.parquet file"):
        caption(photos, Path("captions.csv"))
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty: has no JPEG"):
        caption(Path("empty"), Path("captions.jsonl"))
    (Path("empty") / "1.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="none of its 1 pictures can be read"):
        caption(Path("empty"), Path("captions.jsonl"))


def test_a_folder_without_out_says_what_to_add(photos: Path) -> None:
    for source in (photos, photos / "more.zip"):
        with pytest.raises(DataError, match=r"add `--out captions\.jsonl`"):
            caption_photos(params.load(), [source])
    with pytest.raises(ConfigError, match="found 2 arguments; name one folder"):
        caption_folder(params.load(), [photos, photos], Path("captions.jsonl"))


def test_two_runs_do_not_write_to_one_output(caption, photos: Path) -> None:
    with bulk_outputs.open_output(Path("captions.jsonl"), []), pytest.raises(TemporaryError, match="another run"):
        caption(photos, Path("captions.jsonl"))


def test_a_killed_run_is_continued_without_captioning_twice(workspace: Path, pictures: list[bytes]) -> None:
    folder = workspace / "many"
    folder.mkdir()
    for k in range(60):
        (folder / f"{k:02}.jpg").write_bytes(pictures[k % 8])
    set_params(workspace, {"runtime.caption_batch_size": 2})
    model = str(ROOT / "models" / "git-demo")
    words = ["-m", "pipeline.cli", "caption", "many", "--out", "captions.jsonl", "--model", model]
    out = workspace / "captions.jsonl"
    killed = subprocess.Popen(
        [sys.executable, *words], cwd=workspace, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = out.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    done = kept.count(b"\n")
    assert done < 60
    again = run(workspace, sys.executable, *words, PYTHONPATH=str(ROOT))
    assert again.returncode == 0, again.stderr
    assert f"{done} captioned before" in again.stdout
    assert out.read_bytes().startswith(kept)
    assert sorted(line["file_name"] for line in lines(out)) == sorted(path.name for path in folder.iterdir())
