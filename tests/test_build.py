from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import build, ingest, params
from pipeline.data.records import PictureReader, read_examples
from pipeline.data.split import SPLITS
from pipeline.drawn.sample import write_sample
from pipeline.errors import DataError
from pipeline.files import read_json, sha256_of
from tests.conftest import jpeg, set_params


def build_from(*sources: str) -> dict:
    set_params(Path.cwd(), {"ingest.sources": list(sources)})
    for source in sources:
        ingest.run(params.load(), Namespace(source=source))
    build.run(params.load(), Namespace())
    return read_json(Path("reports/build.json"))


def splits() -> dict[str, str]:
    return {e.sha256: split for split in SPLITS for e in read_examples(Path("data/dataset") / split)}


def test_every_picture_and_caption_is_accounted_for(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=60, seed=3)
    report = build_from("sample")
    for kind in ("pictures", "captions"):
        account = report[kind]
        assert account["in"] == sum(account["kept"].values()) + sum(account["set_aside"].values())
    assert report["captions"]["set_aside"]["same_caption"] == 1


def test_more_data_and_another_size_move_no_picture_to_another_split(workspace: Path) -> None:
    write_sample(workspace / "data/raw/one", pictures=60, seed=3)
    write_sample(workspace / "data/raw/two", pictures=40, seed=4)
    build_from("one")
    before = splits()
    set_params(workspace, {"ingest.image_size": 48})
    build_from("two", "one")
    after = splits()
    assert len(after) > len(before)
    assert all(after.get(picture, split) == split for picture, split in before.items())


def test_a_picture_in_two_sources_is_one_with_the_captions_of_both(workspace: Path, bring: Callable[..., Path]) -> None:
    write_sample(workspace / "data/raw/more", pictures=40, seed=5)
    bring("one", {"a.jpg": jpeg()}, [["a.jpg", "first"], ["a.jpg", " both\n"]])
    bring("two", {"b.jpg": jpeg()}, [["b.jpg", "both"], ["b.jpg", "second"]])
    report = build_from("one", "two", "more")
    (example,) = (e for split in SPLITS for e in read_examples(Path("data/dataset") / split) if "one" in e.sources)
    assert example.captions == ["first", "both", "second"]
    assert example.sources == ["one", "two"]
    assert example.origins == ["images.zip:a.jpg", "images.zip:b.jpg"]
    assert report["pictures"]["set_aside"]["in_several_sources"] == 1


def test_near_duplicates_do_not_stand_in_two_splits(workspace: Path, bring: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    files, rows = {}, []
    for k in range(30):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (160, 120), Image.Resampling.BICUBIC
        )
        for quality in (60, 90, 95):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality)
            files[f"{k}-{quality}.jpg"] = buffer.getvalue()
            rows.append([f"{k}-{quality}.jpg", f"picture {k}"])
    bring("s", files, rows)
    report = build_from("s")
    where: dict[str, set[str]] = {}
    for split in SPLITS:
        for example in read_examples(Path("data/dataset") / split):
            where.setdefault(example.captions[0], set()).add(split)
    assert len(where) == 30
    assert all(len(found) == 1 for found in where.values())
    assert report["pictures"]["set_aside"]["near_duplicate"] == len(report["near_duplicates"]) > 5


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_sources(workspace: Path) -> None:
    write_sample(workspace / "data/raw/one", pictures=30, seed=3)
    write_sample(workspace / "data/raw/two", pictures=30, seed=4)
    build_from("one", "two")
    first = sha256_of(Path("data/dataset"))
    build_from("two", "one")
    assert sha256_of(Path("data/dataset")) == first


def test_too_few_pictures_are_refused_and_leave_the_last_data_set(workspace: Path, bring: Callable[..., Path]) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    build_from("sample")
    before = sha256_of(Path("data/dataset"), Path("reports/build.json"))
    bring("tiny", {"a.jpg": jpeg()}, [["a.jpg", "alone"]])
    with pytest.raises(DataError, match=r"would be empty: 1 pictures are too few"):
        build_from("tiny")
    assert sha256_of(Path("data/dataset"), Path("reports/build.json")) == before


def test_hugging_face_reads_the_data_set_as_it_stands(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("pipeline.data.records.SHARD_PICTURES", 20)  # so that there are several shards
    write_sample(workspace / "data/raw/sample", pictures=60, seed=3)
    build_from("sample")
    loaded = datasets.load_dataset("imagefolder", data_dir="data/dataset", cache_dir=str(tmp_path / "cache"))
    assert len(list(Path("data/dataset/train").glob("pictures-*.zip"))) > 1
    for split in SPLITS:
        ours = read_examples(Path("data/dataset") / split)
        reader = PictureReader(Path("data/dataset") / split)
        theirs = {row["sha256"]: row for row in loaded[split]}
        assert len(ours) == len(theirs)
        for example in ours:
            row = theirs[example.sha256]
            assert row["captions"] == example.captions
            with Image.open(io.BytesIO(reader.read(example.file_name))) as image:
                assert np.array_equal(np.asarray(row["image"]), np.asarray(image))


def test_lines_are_plain_json_that_a_person_can_read(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    build_from("sample")
    line = json.loads((Path("data/dataset/train/captions.jsonl")).read_text().split("\n")[0])
    assert set(line) == {"file_name", "captions", "sha256", "sources", "origins"}
