"""Every layout, in every location that a captions file may have."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline import ingest
from pipeline.config import params
from pipeline.config.errors import DataError
from pipeline.data.audit import read_set_aside
from pipeline.data.dataset import read_examples, read_ingested
from pipeline.data.sources import layouts, parquet_table
from pipeline.data.sources.archive import Files
from pipeline.data.sources.layout import Captions, CaptionsFile, Layout, named
from pipeline.data.sources.parquet_file import picture_column
from pipeline.runtime.atomic_files import read_json
from tests.conftest import TINY, jpeg, run, set_params

PICTURES = {"red.jpg": jpeg("red"), "blue.jpg": jpeg("blue"), "green.jpg": jpeg("green")}
EXPECTED = {"red.jpg": ["a red page", "red all over"], "blue.jpg": ["a blue page, “café”"]}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def csv_of(picture: str, caption: str) -> bytes:
    rows = [[name, text] for name, texts in EXPECTED.items() for text in texts]
    return "\n".join([f"{picture},{caption}", *(f'{name},"{text}"' for name, text in rows)]).encode()


def flickr_tokens() -> bytes:
    return "".join(f"{name}#{k}\t{text}\n" for name, texts in EXPECTED.items() for k, text in enumerate(texts)).encode()


def metadata_lines() -> bytes:
    return b"".join(as_json({"file_name": name, "captions": texts}) + b"\n" for name, texts in EXPECTED.items())


def coco() -> bytes:
    images = [{"id": k, "file_name": name} for k, name in enumerate(EXPECTED)]
    notes = [{"image_id": k, "caption": text} for k, texts in enumerate(EXPECTED.values()) for text in texts]
    return as_json({"info": {}, "images": images, "annotations": notes})


def karpathy() -> bytes:
    return as_json(
        {
            "images": [
                {"filepath": "img", "filename": name, "split": "train", "sentences": [{"raw": t} for t in texts]}
                for name, texts in EXPECTED.items()
            ]
        }
    )


LAYOUTS: dict[str, tuple[str, str, bytes]] = {
    "pair": ("table", "my captions.csv", csv_of("image", "caption")),
    "Kaggle's columns": ("table", "captions_csv.csv", csv_of("Image File", "Caption")),
    "Flickr8k": ("Flickr8k", "captions.txt", csv_of("image", "caption")),
    "Flickr8k tokens": ("Flickr8k tokens", "Flickr8k.token.txt", flickr_tokens()),
    "Flickr30k tokens": ("Flickr8k tokens", "results_20130124.token", flickr_tokens()),
    "imagefolder lines": ("imagefolder", "img/metadata.jsonl", metadata_lines()),
    "imagefolder table": ("imagefolder", "img/metadata.csv", csv_of("file_name", "text")),
    "COCO": ("COCO", "annotations/captions_train2017.json", coco()),
    "Karpathy": ("Karpathy", "dataset_coco.json", karpathy()),
}


def ingested(workspace: Path, source: str = "s") -> dict[str, list[str]]:
    set_params(workspace, {"ingest.sources": [source]})
    ingest.run(params.load(), Namespace(source=source))
    found = read_ingested(workspace / "data/ingest" / source)
    return {record.origin.rpartition("/")[2]: [row.text for row in record.captions] for record in found}


def zipped(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def loose(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def beside(folder: Path, name: str, captions: bytes, pictures: Mapping[str, bytes]) -> None:
    zipped(folder / "pictures.zip", pictures)
    loose(folder, {name: captions})


def within(folder: Path, name: str, captions: bytes, pictures: Mapping[str, bytes]) -> None:
    zipped(folder / "all.zip", {f"wrapper/{member}": data for member, data in {name: captions, **pictures}.items()})


def unpacked(folder: Path, name: str, captions: bytes, pictures: Mapping[str, bytes]) -> None:
    loose(folder, {name: captions, **pictures})


@pytest.mark.parametrize("put", [beside, within, unpacked])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_in_every_location(workspace: Path, layout: str, put: Callable[..., None]) -> None:
    kind, name, captions = LAYOUTS[layout]
    put(workspace / "data/raw/s", name, captions, {f"img/{file}": data for file, data in PICTURES.items()})
    assert ingested(workspace) == EXPECTED
    report = read_json(Path("reports/ingest/s.json"))
    assert [table["layout"] for table in report["captions_files"]] == [kind]
    assert report["files"]["set_aside"] == {"no_caption": 1}
    assert report["rows"] == {"in": 3, "captions_kept": 3, "set_aside": {}}


def posts(*posts: dict[str, Any]) -> bytes:
    """Encode posts like Instagram: UTF-8 decoded as Latin-1."""
    return as_json(json.loads(json.dumps(posts, ensure_ascii=False).encode().decode("latin-1")))


def test_an_instagram_export_is_read(workspace: Path) -> None:
    folder = "media/posts/202101"
    export = posts(
        {"media": [{"uri": f"{folder}/red.jpg", "title": "Café 🔥\nsecond line"}]},
        {
            "title": "one caption for all",
            "media": [{"uri": f"{folder}/{name}", "title": ""} for name in ("blue.jpg", "clip.mp4", "green.jpg")],
        },
        {"media": [{"uri": f"{folder}/lost.jpg", "title": "gone"}]},
        {"title": "no media"},
    )
    assert b"Caf\\u00c3\\u00a9" in export
    files = {f"{folder}/{name}": data for name, data in PICTURES.items()} | {f"{folder}/clip.mp4": b"film"}
    zipped(workspace / "data/raw/s/instagram-me.zip", {"your_instagram_activity/media/posts_1.json": export, **files})
    assert ingested(workspace) == {
        "red.jpg": ["Café 🔥\nsecond line"],
        "blue.jpg": ["one caption for all"],
        "green.jpg": ["one caption for all"],
    }
    report = read_json(Path("reports/ingest/s.json"))
    assert report["rows"]["in"] == 6
    assert report["rows"]["set_aside"] == {"malformed": 1, "picture_missing": 1, "video": 1}
    red, blue, green = read_ingested(Path("data/ingest/s"))
    assert red.split_by == [red.sha256]
    assert green.split_by == blue.split_by == [blue.sha256]


def read_binary(file: CaptionsFile) -> Captions:
    """Read a binary format: each record is a length in bytes, and `picture=caption` of that length."""
    records, data = [], file.data
    while data:
        size = data[0]
        records.append(data[1 : 1 + size].decode().partition("="))
        data = data[1 + size :]
    rows = (file.row(number, picture, caption) for number, (picture, _, caption) in enumerate(records, start=1))
    return Captions("binary", rows)


def test_a_new_layout_only_needs_an_entry_in_the_list(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Layout("toy", "*.toy", (".toy",), named(r".*\.toy"), read_binary)
    monkeypatch.setattr(layouts, "LAYOUTS", [toy, *layouts.LAYOUTS])
    pairs = [f"{name}={text}".encode() for name, texts in EXPECTED.items() for text in texts]
    content = b"".join(bytes([len(pair)]) + pair for pair in pairs)
    within(workspace / "data/raw/s", "captions.toy", content, {f"img/{n}": d for n, d in PICTURES.items()})
    assert ingested(workspace) == EXPECTED
    (summary,) = read_json(Path("reports/ingest/s.json"))["captions_files"]
    assert summary == {"file": "all.zip:wrapper/captions.toy", "layout": "toy", "encoding": "binary", "rows": 3}


def test_a_layout_may_recognise_files_by_their_neighbours_and_content(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text file beside each picture, with the picture's name."""

    def recognises(files: Files, index: int) -> bool:
        stem = files.members[index].name.removesuffix(".txt")
        beside_picture = any(member.name == f"{stem}.jpg" for member in files.members)
        return beside_picture and files.read(index, 1000) != b"no caption"

    def read(file: CaptionsFile) -> Captions:
        encoding, lines = file.lines()
        stem = file.member.rpartition("/")[2].removesuffix(".txt")
        return Captions(encoding, (file.row(number, stem, line) for number, line in lines))

    sidecar = Layout("sidecar", "a .txt beside each picture", (".txt",), recognises, read)
    monkeypatch.setattr(layouts, "LAYOUTS", [sidecar, *layouts.LAYOUTS])
    captions = {f"img/{name[:-4]}.txt": "\n".join(texts).encode() for name, texts in EXPECTED.items()}
    pictures = {f"img/{name}": data for name, data in PICTURES.items()}
    notes = {"img/green.txt": b"no caption", "readme.txt": b"about these pictures"}
    loose(workspace / "data/raw/s", captions | pictures | notes)
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    assert read_json(Path("reports/ingest/s.json"))["files"]["set_aside"] == {"no_caption": 1, "not_a_picture_file": 2}


@pytest.mark.slow
def test_dvc_repro_merges_the_pictures_of_sources_in_every_layout(clone: Callable[[], Path]) -> None:
    """One source per layout, all with the same pictures: DVC ingests each, and build merges them."""
    folder = clone()
    shutil.rmtree(folder / "data/raw")
    sources = []
    for k, (_, name, captions) in enumerate(LAYOUTS.values()):
        put = (beside, within, unpacked)[k % 3]
        put(folder / f"data/raw/s{k}", name, captions, {f"img/{file}": data for file, data in PICTURES.items()})
        sources.append(f"s{k}")
    export = posts(*({"media": [{"uri": f"img/{n}", "title": texts[0]}]} for n, texts in EXPECTED.items()))
    within(folder / "data/raw/me", "content/posts_1.json", export, {f"img/{n}": d for n, d in PICTURES.items()})
    sources.append("me")
    set_params(folder, {**TINY, "ingest.sources": sources, "build.validation": 0, "build.test": 0})
    added = run(folder, "dvc", "add", *(f"data/raw/{source}" for source in sources))
    assert added.returncode == 0, added.stderr
    done = run(folder, "dvc", "repro", "build")
    assert done.returncode == 0, done.stdout + done.stderr
    examples = read_examples(folder / "data/dataset/train")
    straight = [[text.replace("“", '"').replace("”", '"') for text in texts] for texts in EXPECTED.values()]
    assert sorted(example.captions for example in examples) == sorted(straight)
    assert all(len(example.sources) == len(sources) for example in examples)
    report = read_json(folder / "reports/build.json")
    assert report["pictures"]["in"] == 3 * len(sources)
    assert report["pictures"]["set_aside"] == {
        "in_several_sources": 2 * (len(sources) - 1),
        "no_caption": len(sources),
    }


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("caf\u00c3\u00a9", "café"),
        ("\u00f0\u009f\u0094\u00a5", "🔥"),
        ("café", "café"),  # every letter below U+0100, but no UTF-8
        ("caf\u00c3\u00a9 🔥", "caf\u00c3\u00a9 🔥"),  # UTF-8, but not every letter below U+0100
    ],
)
def test_only_text_that_was_decoded_as_latin1_is_repaired(workspace: Path, text: str, repaired: str) -> None:
    export = as_json([{"media": [{"uri": "red.jpg", "title": text}]}])
    loose(workspace / "data/raw/s", {"posts_1.json": export, "red.jpg": PICTURES["red.jpg"]})
    assert ingested(workspace) == {"red.jpg": [repaired]}


def test_a_zip_of_windows_with_chinese_names_is_matched_with_its_table(workspace: Path) -> None:
    """`zipfile` marks names as UTF-8; archivers of Chinese Windows write GBK without a mark."""
    folder = workspace / "data/raw/s"
    names = {"red.jpg": "草地上的狗.jpg", "blue.jpg": "窗边的猫和花.jpg"}
    ascii_names = {old: f"{old[0]}".ljust(len(new.encode("gbk")), "_") for old, new in names.items()}
    zipped(folder / "a.zip", {f"img/{ascii_names[old]}": PICTURES[old] for old in names})
    data = (folder / "a.zip").read_bytes()
    for old, new in names.items():
        data = data.replace(ascii_names[old].encode(), new.encode("gbk"))
    (folder / "a.zip").write_bytes(data)
    rows = "".join(f'{new},"{EXPECTED[old][0]}"\n' for old, new in names.items())
    loose(folder, {"captions.csv": f"image,caption\n{rows}".encode()})
    assert ingested(workspace) == {new: EXPECTED[old][:1] for old, new in names.items()}


def test_texts_beside_the_pictures_are_captions(workspace: Path) -> None:
    """As kohya's scripts, TagGUI and JoyCaption write them."""
    texts = {f"10_dog/{name[:-4]}.txt": "\n".join(lines).encode() for name, lines in EXPECTED.items()}
    pictures = {f"10_dog/{name}": data for name, data in PICTURES.items()}
    loose(workspace / "data/raw/s", {**texts, **pictures, "readme.txt": b"about them"})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    report = read_json(Path("reports/ingest/s.json"))
    assert [one["layout"] for one in report["captions_files"]] == ["sidecars"] * 2
    assert report["files"]["set_aside"] == {"no_caption": 1, "not_a_picture_file": 1}
    # Beside captions of another layout they are notes.
    loose(workspace / "data/raw/s", {"captions.csv": b"image,caption\nred.jpg,from the table\n"})
    set_params(workspace, {"ingest.max_set_aside": 1.0})
    assert ingested(workspace) == {"red.jpg": ["from the table"]}


def test_many_texts_are_a_few_lines_of_the_report(workspace: Path) -> None:
    files = {f"{k}.jpg": jpeg("red", (20 + k, 20)) for k in range(120)}
    loose(workspace / "data/raw/s", {**files, **{f"{k}.txt": b"red" for k in range(120)}})
    assert len(ingested(workspace)) == 120
    summaries = read_json(Path("reports/ingest/s.json"))["captions_files"]
    assert len(summaries) == 100


def test_shards_of_webdataset_are_read(workspace: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = workspace / "data/raw/s"
    folder.mkdir(parents=True)
    for shard, (name, texts) in enumerate(EXPECTED.items()):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            # Keys may start anew in each shard.
            writer.write({"__key__": "000", "jpg": PICTURES[name], "txt": texts[0], "json": {"caption": texts[0]}})
    ingested(workspace)
    found = {r.origin: [c.text for c in r.captions] for r in read_ingested(workspace / "data/ingest/s")}
    wanted = list(EXPECTED.values())
    assert found == {"00000.tar:000.jpg": wanted[0][:1], "00001.tar:000.jpg": wanted[1][:1]}
    data = (folder / "00000.tar").read_bytes()
    for cut in (100, 700, 1600):
        (folder / "00000.tar").write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"00000\.tar"):
            ingested(workspace)


def label_studio(minimal: bool, tag: str, field: str) -> bytes:
    """Return an export as documented: uploaded files get a prefix, and the names of tags are the project's."""
    tasks: list[dict[str, Any]] = []
    for k, (name, texts) in enumerate(EXPECTED.items(), start=1):
        upload = f"/data/upload/3/0a1b2c3{k}-{name}"
        if minimal:
            text = {"text": texts} if len(texts) > 1 else texts[0]  # as label-studio-sdk 2.1 writes it
            facts = {"annotator": 1, "annotation_id": k, "created_at": "2026-01-02", "updated_at": "", "lead_time": 2.5}
            tasks.append({field: upload, "id": k, tag: text, **facts})
            continue
        region = {"id": "x", "type": "textarea", "from_name": tag, "to_name": "photo", "value": {"text": texts}}
        rating = {"id": "y", "type": "rating", "from_name": "stars", "to_name": "photo", "value": {"rating": 3}}
        cancelled = {"id": 9, "was_cancelled": True, "result": [region | {"value": {"text": ["no"]}}]}
        annotations = [{"id": k, "was_cancelled": False, "result": [region, rating]}, cancelled]
        tasks.append({"id": k, "annotations": annotations, "file_upload": upload[15:], "data": {field: upload}})
    return as_json(tasks)


@pytest.mark.parametrize("minimal", [False, True])
@pytest.mark.parametrize("tag", ["caption", "what_is_it"])
@pytest.mark.parametrize("field", ["photo", "captioning"])  # the latter is in Label Studio's template for captioning
def test_an_export_of_label_studio_is_read(workspace: Path, minimal: bool, tag: str, field: str) -> None:
    files = {f"img/{name}": data for name, data in PICTURES.items()}
    loose(workspace / "data/raw/s", {"project-3-at-2026.json": label_studio(minimal, tag, field), **files})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    assert read_json(Path("reports/ingest/s.json"))["captions_files"][0]["layout"] == "Label Studio"


def argilla(picture: str) -> bytes:
    """Return records as Argilla's `Record.to_dict` writes them; `picture` is the place of a picture."""
    records = []
    for k, (name, texts) in enumerate(EXPECTED.items()):
        records.append(
            {
                "id": f"{k}",
                "fields": {"photo": picture.format(name), "hint": "describe it"},
                "metadata": {"shot": "2026"},
                "suggestions": {"caption": {"value": "by a model", "score": 0.5, "agent": "git"}},
                "responses": {
                    "caption": [{"value": text, "user_id": f"user {n}"} for n, text in enumerate(texts)],
                    "mood": [{"value": "happy", "user_id": "user 0"}],
                },
                "vectors": {},
                "status": "completed",
                "_server_id": f"server {k}",
            }
        )
    waiting = {"responses": {}, "fields": {"photo": picture.format("green.jpg")}, "status": "pending"}
    return as_json([*records, records[0] | waiting])


def test_records_of_argilla_are_read(workspace: Path) -> None:
    loose(workspace / "data/raw/s", {"records.json": argilla("https://example.org/photos/{}?v=2"), **PICTURES})
    set_params(workspace, {"ingest.max_set_aside": 0.5})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    report = read_json(Path("reports/ingest/s.json"))
    assert [one["layout"] for one in report["captions_files"]] == ["Argilla"]
    assert report["rows"] == {"in": 4, "captions_kept": 3, "set_aside": {"empty": 1}}
    loose(workspace / "data/raw/s", {"records.json": argilla("data:image/jpeg;base64,/9j/" + "4" * 100_000)})
    with pytest.raises(DataError, match=r"records\.json: record 1 has its picture in the file itself; .*to_parquet"):
        ingested(workspace)


def test_records_of_argilla_with_their_pictures_are_read_from_parquet(workspace: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (workspace / "data/raw/s").mkdir(parents=True)
    rows = {
        "id": ["a", "b"],
        "photo": [{"bytes": PICTURES[name], "path": None} for name in EXPECTED],
        "caption.responses": list(EXPECTED.values()),
        "caption.responses.users": [[f"user {n}" for n, _ in enumerate(texts)] for texts in EXPECTED.values()],
        "caption.suggestion": ["by a model", "by a model"],
    }
    data = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    data.to_parquet(workspace / "data/raw/s/records.parquet")
    set_params(workspace, {"ingest.columns": {"picture": None, "caption": "caption.responses"}})
    assert list(ingested(workspace).values()) == list(EXPECTED.values())


def test_a_second_table_that_has_no_captions_is_left_alone(workspace: Path) -> None:
    tables = {"captions.csv": csv_of("image", "caption"), "places.csv": b"image,latitude\nred.jpg,1.5\n"}
    loose(workspace / "data/raw/s", {**tables, **PICTURES})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    assert read_json(Path("reports/ingest/s.json"))["files"]["set_aside"] == {"no_caption": 1, "not_captions": 1}
    (workspace / "data/raw/s/captions.csv").unlink()
    with pytest.raises(DataError, match=r"places\.csv: row 1: found the columns image, latitude"):
        ingested(workspace)


def test_a_workbook_of_excel_is_read(workspace: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["notes"])  # type: ignore[union-attr]
    sheet = book.create_sheet("Photos")
    sheet.append(["Photos of 2026"])
    sheet.append(["no", "Image", "Caption"])
    for k, (name, texts) in enumerate(EXPECTED.items()):
        for text in texts:
            sheet.append([k, name, text])
    sheet.append([None, None, None])
    sheet.append([9, "green.jpg", None])
    folder = workspace / "data/raw/s"
    loose(folder, {**PICTURES, "~$photos.xlsx": b"a lock file of Excel"})
    book.save(folder / "photos.xlsx")
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    report = read_json(Path("reports/ingest/s.json"))
    assert report["rows"] == {"in": 4, "captions_kept": 3, "set_aside": {"empty": 1}}
    (empty,) = (item for item in read_set_aside(Path("data/ingest/s/set_aside.csv")) if item.kind == "row")
    assert empty.row == 7
    data = (folder / "photos.xlsx").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    cut = parts["xl/worksheets/sheet2.xml"]
    parts["xl/worksheets/sheet2.xml"] = cut[: cut.rindex(b"<row")]  # after good rows
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as torn:
        for name, part in parts.items():
            torn.writestr(name, part)
    for damaged in (data[: len(data) // 2], b"no workbook", data.replace(b"<", b"{"), buffer.getvalue()):
        (folder / "photos.xlsx").write_bytes(damaged)
        with pytest.raises(DataError, match=r"photos\.xlsx: .*save it as CSV"):
            ingested(workspace)
    openpyxl.Workbook().save(folder / "photos.xlsx")
    with pytest.raises(DataError, match=r"photos\.xlsx: no sheet has the columns"):
        ingested(workspace)


def test_parquet_of_hugging_face_datasets_is_read(workspace: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = workspace / "data/raw/s"
    folder.mkdir(parents=True)
    for split, name in (("train", "red.jpg"), ("test", "blue.jpg")):
        pictures = [PICTURES[name], *(jpeg("green", (30 + k, 20 + 9 * (split == "test"))) for k in range(250))]
        rows = {
            "photo": [{"bytes": data, "path": f"{k}.jpg"} for k, data in enumerate(pictures)],
            "caption": [EXPECTED[name], *([f"green {k}"] for k in range(250))],
        }
        features = datasets.Features({"photo": datasets.Image(), "caption": [datasets.Value("string")]})
        file = folder / f"data/{split}-00000-of-00001.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file, batch_size=100)
    ingested(workspace)
    found = list(read_ingested(workspace / "data/ingest/s"))
    assert len(found) == 502
    first = {record.splits[0]: record for record in found if record.captions[0].row == 1}
    assert [caption.text for caption in first["train"].captions] == EXPECTED["red.jpg"]
    assert [caption.text for caption in first["test"].captions] == EXPECTED["blue.jpg"]
    train = {record.origin: record for record in found if record.splits == ["train"]}
    last = train["data/train-00000-of-00001.parquet:data/train-00000-of-00001/0000250.jpg"]
    assert last.captions[0].text == "green 249"
    assert (last.width, last.height) == (279, 20)
    report = read_json(Path("reports/ingest/s.json"))
    assert report["files"]["in"] == 504
    assert report["rows"] == {"in": 503, "captions_kept": 503, "set_aside": {}}
    data = file.read_bytes()
    file.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"\.parquet: cannot be read as parquet"):
        ingested(workspace)


def test_parquet_with_the_names_of_pictures_is_a_table(workspace: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pairs = [(name, text) for name, texts in EXPECTED.items() for text in texts]
    table = pa.table({"file_name": [name for name, _ in pairs], "text": [text for _, text in pairs], "n": [1, 2, 3]})
    loose(workspace / "data/raw/s", PICTURES)
    parquet.write_table(table, workspace / "data/raw/s/captions.parquet")
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}
    parquet.write_table(table.drop_columns("text"), workspace / "data/raw/s/captions.parquet")
    with pytest.raises(DataError, match="found the columns file_name, n; name the columns"):
        ingested(workspace)


@pytest.mark.parametrize(
    "path",
    [
        "C:\\Users\\me\\img\\{}",
        "/content/drive/MyDrive/data set/img/{}",
        "https://example.org/img/{}?size=large",
        "file:///home/me/photos/{}",
        "\\\\server\\share\\{}",
        "~/photos/{}",
    ],
)
def test_paths_of_another_machine_match_by_their_end(
    workspace: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{path.format(name)},{texts[0].split(',')[0]}\n" for name, texts in EXPECTED.items())
    files = {f"img/{name}": data for name, data in PICTURES.items()}
    loose(workspace / "data/raw/s", {"captions.csv": f"image,caption\n{rows}/x/lost.jpg,gone\n".encode(), **files})
    assert set(ingested(workspace)) == set(EXPECTED)
    report = read_json(Path("reports/ingest/s.json"))
    assert report["foreign_paths"] == 2
    assert report["rows"]["set_aside"] == {"picture_missing": 1}
    assert "2 rows name paths of another machine" in capsys.readouterr().out


def test_a_path_of_another_machine_that_fits_two_pictures_is_ambiguous(workspace: Path) -> None:
    files = {"a/x.jpg": jpeg("red"), "b/x.jpg": jpeg("blue"), "b/y.jpg": jpeg("green")}
    table = b"image,caption\n/else/x.jpg,which?\n/else/b/x.jpg,this\n/else/y.jpg,fine\n"
    loose(workspace / "data/raw/s", {"captions.csv": table, **files})
    assert ingested(workspace) == {"x.jpg": ["this"], "y.jpg": ["fine"]}
    assert read_json(Path("reports/ingest/s.json"))["rows"]["set_aside"] == {"picture_ambiguous": 1}


def test_a_colon_in_the_name_of_a_text_is_part_of_the_name(workspace: Path) -> None:
    red, green = (PICTURES[name] for name in sorted(EXPECTED, reverse=True))
    files = {"10:30.jpg": red, "10:30.txt": b"a dog", "30.jpg": green, "30.txt": b"a cat"}
    loose(workspace / "data/raw/s", files)
    assert ingested(workspace) == {"10:30.jpg": ["a dog"], "30.jpg": ["a cat"]}


def test_one_large_text_in_many_rows_of_parquet_takes_the_memory_of_a_few(workspace: Path) -> None:
    folder = workspace / "data/raw/s"
    loose(folder, PICTURES)
    rows = {"image": ["red.jpg"] * 3000, "caption": ["x" * 100_000] * 3000}
    parquet.write_table(pa.table(rows), folder / "rows.parquet")
    assert (folder / "rows.parquet").stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    file = CaptionsFile((folder / "rows.parquet").read_bytes(), "rows.parquet", "rows.parquet", "rows.parquet")
    most = 0
    for _ in parquet_table.LAYOUT.read(file).rows:
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 20e6


@pytest.mark.parametrize("where", [0.3, 0.5, 0.97])
def test_damaged_parquet_is_an_error_in_one_line(workspace: Path, where: float) -> None:
    folder = workspace / "data/raw/s"
    loose(folder, PICTURES)
    words = [f"a page {k} of {k * k}" for k in range(2000)]
    parquet.write_table(pa.table({"image": ["red.jpg"] * 2000, "caption": words}), folder / "rows.parquet")
    data = bytearray((folder / "rows.parquet").read_bytes())
    place = int(len(data) * where)
    data[place : place + 40] = b"\xff" * 40
    (folder / "rows.parquet").unlink()
    zipped(folder / "rows.zip", {"rows.parquet": bytes(data)})
    with pytest.raises(DataError) as raised:
        ingested(workspace)
    assert "rows.parquet" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_columns_of_captions_are_an_error(workspace: Path) -> None:
    folder = workspace / "data/raw/s"
    loose(folder, PICTURES)
    table = pa.Table.from_arrays(
        [pa.array(["red.jpg"]), pa.array(["x"]), pa.array(["y"])], ["image", "caption", "caption"]
    )
    parquet.write_table(table, folder / "rows.parquet")
    with pytest.raises(DataError, match="several columns called caption"):
        ingested(workspace)


@pytest.mark.parametrize(
    "kinds", [(pa.binary(), pa.int32()), (pa.int32(), pa.string()), (pa.string(), pa.string())], ids=str
)
def test_a_struct_of_other_types_is_no_column_of_pictures(kinds: tuple[pa.DataType, pa.DataType]) -> None:
    schema = pa.schema([pa.field("image", pa.struct([("bytes", kinds[0]), ("path", kinds[1])]))])
    assert picture_column(schema) is None


@pytest.mark.parametrize("odd", [{"result": 3}, {"result": [{"type": "textarea", "value": None}]}])
def test_odd_annotations_of_label_studio_are_no_captions(workspace: Path, odd: dict[str, Any]) -> None:
    tasks = json.loads(label_studio(minimal=False, tag="caption", field="image"))
    tasks[0]["annotations"].append({"was_cancelled": False, **odd})
    loose(workspace / "data/raw/s", {"export.json": as_json(tasks), **PICTURES})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}


def test_odd_responses_of_argilla_are_no_captions(workspace: Path) -> None:
    records = json.loads(argilla("https://example.org/photos/{}?v=2"))
    records[-1]["responses"] = {"caption": 3}
    loose(workspace / "data/raw/s", {"records.json": as_json(records), **PICTURES})
    set_params(workspace, {"ingest.max_set_aside": 0.5})
    assert ingested(workspace) == {name: EXPECTED[name] for name in sorted(EXPECTED)}


def test_several_files_of_one_layout_are_read_together(workspace: Path) -> None:
    folder = workspace / "data/raw/s"
    zipped(folder / "train2017.zip", {"train2017/red.jpg": PICTURES["red.jpg"]})
    zipped(folder / "val2017.zip", {"val2017/red.jpg": PICTURES["blue.jpg"]})
    one = {"images": [{"id": 1, "file_name": "train2017/red.jpg"}], "annotations": [{"image_id": 1, "caption": "one"}]}
    two = {"images": [{"id": 1, "file_name": "val2017/red.jpg"}], "annotations": [{"image_id": 1, "caption": "two"}]}
    instances = as_json({"images": [], "annotations": []})
    zipped(
        folder / "annotations.zip",
        {
            "annotations/captions_train2017.json": as_json(one),
            "annotations/captions_val2017.json": as_json(two),
            "annotations/instances_val2017.json": instances,
        },
    )
    ingested(workspace)
    assert [r.captions[0].text for r in read_ingested(workspace / "data/ingest/s")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions_x.json", b"[]", "captions_x.json: has no list `images`"),
        ("captions_x.json", b"{", "captions_x.json: is not valid JSON"),
        ("captions_x.json", b"[" * 100_000, "captions_x.json: is not valid JSON"),
        ("dataset_x.json", b'{"images": 3}', "has no list `images`"),
        ("posts_1.json", b'{"a": 1}', "is not a list of posts"),
        ("metadata.jsonl", b'{"file_name": "red.jpg"}\n{', "line 2: is not valid JSON"),
    ],
)
def test_a_captions_file_that_does_not_fit_its_layout_is_rejected(
    workspace: Path, name: str, content: bytes, words: str
) -> None:
    loose(workspace / "data/raw/s", {name: content, **PICTURES})
    with pytest.raises(DataError, match=words):
        ingested(workspace)


def test_odd_rows_of_json_are_set_aside_and_counted(workspace: Path) -> None:
    notes = [
        {"image_id": 1, "caption": "good"},
        {"image_id": 1, "caption": 7},
        {"image_id": 2, "caption": "nobody's"},
        {"image_id": [1]},
        "text",
        {"image_id": 1, "caption": " "},
        {"image_id": 1, "caption": "half a letter \ud83d"},
    ]
    value = {"images": [{"id": 1, "file_name": "red.jpg"}, 3, {"id": {}}], "annotations": notes}
    loose(workspace / "data/raw/s", {"captions_x.json": as_json(value), **PICTURES})
    set_params(workspace, {"ingest.max_set_aside": 0.9})
    assert ingested(workspace) == {"red.jpg": ["good", "half a letter \ufffd"]}
    assert read_json(Path("reports/ingest/s.json"))["rows"] == {
        "in": 7,
        "captions_kept": 2,
        "set_aside": {"empty": 1, "malformed": 3, "picture_missing": 1},
    }


def test_exact_names_win_over_names_that_differ_in_case_or_unicode_form(workspace: Path) -> None:
    names = ["IMG.jpg", "img.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"]
    rows = "".join(f"{name},caption {k}\n" for k, name in enumerate(names)) + "Img.jpg,which?\nCAF\u00c9.jpg,which?\n"
    zipped(workspace / "data/raw/s/a.zip", {name: jpeg("red", (20 + k, 20)) for k, name in enumerate(names)})
    loose(workspace / "data/raw/s", {"captions.csv": b"image,caption\n" + rows.encode()})
    assert list(ingested(workspace).values()) == [[f"caption {k}"] for k in range(4)]
    assert read_json(Path("reports/ingest/s.json"))["rows"]["set_aside"] == {"picture_ambiguous": 2}


def test_pictures_in_unsupported_formats_are_counted(workspace: Path) -> None:
    loose(workspace / "data/raw/s", {"captions.csv": csv_of("image", "caption"), **PICTURES, "x.PSD": b"8BPS"})
    ingested(workspace)
    assert read_json(Path("reports/ingest/s.json"))["files"]["set_aside"] == {"no_caption": 1, "unsupported_format": 1}
