"""Archives written by the libraries that people use, through ingest and build: the account equals a count by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.data.dataset import read_examples
from pipeline.data.split import SPLITS
from tests.conftest import set_params
from tests.test_build import build_from, check_audit, photo

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")

Account = dict[str, dict[str, Any]]


def hugging_face_parquet(folder: Path) -> Account:
    """Six rows: three good ones, the same picture again, a damaged picture, and an empty caption."""
    pictures = [photo(0), photo(1), photo(2), photo(0), photo(3)[:-500], photo(4)]
    texts = ["a photo", "another one", "a third", "the first again", "cut off", ""]
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "text": texts}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return {
        "pictures": {"in": 6, "kept": 3, "set_aside": {"damaged": 1, "no_caption": 1, "same_bytes": 1}},
        "captions": {"in": 6, "kept": 4, "set_aside": {"empty": 1, "picture_set_aside": 1}},
    }


def img2dataset(folder: Path) -> Account:
    """A shard with its metadata, as img2dataset writes them: three pictures, and one that could not be downloaded."""
    metadata = []
    with webdataset.TarWriter(str(folder / "00000.tar")) as writer:
        for k in range(4):
            facts = {"key": f"{k:09d}", "url": f"https://example.org/{k}.jpg", "caption": f"photo number {k}"}
            facts["status"] = "success" if k < 3 else "failed_to_download"
            metadata.append(facts)
            if k < 3:
                writer.write({"__key__": facts["key"], "jpg": photo(k), "txt": facts["caption"], "json": facts})
    parquet.write_table(pa.Table.from_pylist(metadata), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 3, "status_dict": {"success": 3}}))
    return {
        "pictures": {"in": 8, "kept": 3, "set_aside": {"not_a_picture_file": 4, "not_captions": 1}},
        "captions": {"in": 3, "kept": 3, "set_aside": {}},
    }


def excel(folder: Path) -> Account:
    """A workbook of pandas: two pictures with three captions, a cell left empty, and a name without a picture."""
    for k in range(3):
        (folder / f"{k}.jpg").write_bytes(photo(k))
    names = ["0.jpg", "0.jpg", "1.jpg", "2.jpg", "lost.jpg"]
    texts = ["one", "two", "three", None, "four"]
    table = pd.DataFrame({"filename": names, "description": texts, "stars": [1, 2, 3, 4, 5]})
    with pd.ExcelWriter(folder / "photos.xlsx") as writer:
        pd.DataFrame({"about": ["my photos"]}).to_excel(writer, sheet_name="Info")
        table.to_excel(writer, sheet_name="Photos")
    return {
        "pictures": {"in": 3, "kept": 2, "set_aside": {"no_caption": 1}},
        "captions": {"in": 5, "kept": 3, "set_aside": {"empty": 1, "picture_missing": 1}},
    }


def utf_16_table(folder: Path) -> Account:
    """A table of pandas in Excel's "Unicode text", with line breaks and tabs in a caption."""
    for k in range(2):
        (folder / f"{k}.jpg").write_bytes(photo(k))
    table = pd.DataFrame({"image": ["0.jpg", "1.jpg", "1.jpg"], "caption": ["a\tb\nc", "café", "café"]})
    table.to_csv(folder / "captions.tsv", sep="\t", encoding="utf-16", index=False)
    return {
        "pictures": {"in": 2, "kept": 2, "set_aside": {}},
        "captions": {"in": 3, "kept": 2, "set_aside": {"same_caption": 1}},
    }


def phone_photos_with_texts(folder: Path) -> Account:
    """HEIC and AVIF files with a text beside each, and a text without a picture."""
    for k, kind in enumerate(("HEIF", "AVIF")):
        image = Image.open(io.BytesIO(photo(k)))
        image.save(folder / f"IMG_{k}.{kind.lower()}", kind)
        (folder / f"IMG_{k}.txt").write_text(f"first line {k}\nsecond line {k}\n")
    (folder / "notes.txt").write_text("no picture has this name")
    return {
        "pictures": {"in": 3, "kept": 2, "set_aside": {"not_a_picture_file": 1}},
        "captions": {"in": 4, "kept": 4, "set_aside": {}},
    }


@pytest.mark.parametrize("write", [hugging_face_parquet, img2dataset, excel, utf_16_table, phone_photos_with_texts])
def test_the_account_equals_a_count_by_hand(workspace: Path, write: Callable[[Path], Account]) -> None:
    folder = workspace / "data/raw/s"
    folder.mkdir(parents=True)
    expected = write(folder)
    set_params(workspace, {"build.validation": 0, "build.test": 0, "ingest.max_set_aside": 1.0})
    report = build_from("s")
    check_audit(report)
    for key, account in expected.items():
        found = report[key]
        assert account == {"in": found["in"], "kept": found["kept"]["train"], "set_aside": found["set_aside"]}, key


def test_the_splits_of_a_hugging_face_data_set_are_kept(workspace: Path) -> None:
    sizes = {"train": 5, "validation": 2, "test": 3}
    folder = workspace / "data/raw/s/data"
    folder.mkdir(parents=True)
    names: dict[str, set[str]] = {}
    first = 0
    for split, size in sizes.items():
        texts = [f"{split} photo {k}" for k in range(size)]
        pictures = [{"bytes": photo(first + k), "path": f"{k}.jpg"} for k in range(size)]
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        part = datasets.Dataset.from_dict({"image": pictures, "text": texts}, features=features)
        part.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        names[split], first = set(texts), first + size
    report = build_from("s")
    assert report["own_splits"] == {"s": sizes}
    assert report["pictures"]["kept"] == sizes
    for split in SPLITS:
        examples = read_examples(workspace / "data/dataset" / split)
        assert {caption for example in examples for caption in example.captions} == names[split]
