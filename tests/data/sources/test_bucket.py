"""Sources whose pictures stay in a bucket: moto's server, and one that fails in the ways that real ones do."""

from __future__ import annotations

import json
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import boto3
import pytest

from pipeline import ingest
from pipeline.commands import add_bucket as command
from pipeline.commands import init
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.data.dataset import Example, read_ingested
from pipeline.data.sources.bucket_list import read_list
from pipeline.runtime import bucket
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.serving.raw_pictures import raw_picture
from tests.conftest import jpeg, set_params
from tests.s3_store import Store, put, running_store

URL = "s3://album/my photos"
KEY = "my photos"
FOLDER = Path("data/raw/s")
OUTPUTS = (Path("data/ingest/s"), Path("reports/ingest/s.json"))
RED, BLUE, GREEN = jpeg("red", (60, 40)), jpeg("blue", (50, 70)), jpeg("green", (300, 200))
# In the order in which a folder is read. The names hold all that keys and paths treat differently.
PICTURES = {
    "1.jpg": RED,
    "Z.JPG": BLUE,
    "b+c%20 d.jpg": jpeg("white"),
    "cut.jpg": GREEN[: len(GREEN) // 2],
    "copy.jpg": RED,
    "nobody.jpg": jpeg("black"),
    "notes.md": b"not a picture",
    "small.jpg": jpeg("red", (9, 9)),
    "a/ü 3.png": GREEN,
    "a/b/4.jpg": jpeg("yellow"),
    "a-b/5.jpg": jpeg("pink"),
}
NAMES = [name for name in PICTURES if name not in ("notes.md", "nobody.jpg")]
TABLE = "image,caption\n" + "".join(f"{name},a caption of {name}\n" for name in NAMES) + "none.jpg,missing\n"
METADATA = "".join(json.dumps({"file_name": name, "text": f"a caption of {name}"}) + "\n" for name in NAMES)
TEXTS = {f"{name.rpartition('.')[0]}.txt": f"a caption of {name}\nanother\n".encode() for name in NAMES}
# What a layout adds to the bucket, and whether the table is given apart.
LAYOUTS = {
    "table apart": ({}, True),
    "table in the bucket": ({"deep/captions.csv": TABLE.encode()}, False),
    "imagefolder": ({"metadata.jsonl": METADATA.encode()}, False),
    "sidecars": (TEXTS, False),
}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, workspace: Path, tmp_path: Path) -> Iterator[Store]:
    monkeypatch.setattr(command, "track", lambda folder: None)
    set_params(workspace, {"ingest.sources": ["s"], "ingest.max_set_aside": 0.9, "ingest.min_side": 16})
    with running_store(tmp_path, monkeypatch) as app:
        boto3.client("s3").create_bucket(Bucket="album")
        fill(PICTURES)
        put("album", "my photos of others/9.jpg", RED)
        app.asked.clear()
        yield app


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text(TABLE)
    return path


def fill(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        put("album", f"{KEY}/{name}", data)


def delete(name: str) -> None:
    boto3.client("s3").delete_object(Bucket="album", Key=f"{KEY}/{name}")


def add(url: str | None = URL, table: Path | None = None) -> str:
    return command.add_bucket(params.load(), "s", url, table)


def ingested() -> str:
    """Ingest the source `s` and return the hash of all that was written."""
    ingest.run(params.load(), Namespace(source="s"))
    return sha256_of(*OUTPUTS)


def read(store: Store) -> list[str]:
    """Return the names of the objects that were read, sorted; repeated requests count."""
    start = f"GET /album/{KEY}/"
    return sorted(asked.removeprefix(start) for asked in store.asked if asked.startswith(start))


def remove_all() -> None:
    for place in (FOLDER, Path(".work"), Path("data/ingest"), Path("reports")):
        shutil.rmtree(place, ignore_errors=True)


needs_ray = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")]


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bucket_gives_the_bytes_of_a_folder_and_the_pictures_of_a_zip(
    workspace: Path, store: Store, table: Path, layout: str, engine: str
) -> None:
    if engine == "ray" and layout != "imagefolder":
        pytest.skip("once is enough")
    captions, apart = LAYOUTS[layout]
    fill(captions)
    files = {**PICTURES, **captions, **({"captions.csv": TABLE.encode()} if apart else {})}
    set_params(workspace, {"runtime.engine": engine, "runtime.ray_workers": 2})
    add(table=table if apart else None)
    kept = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
    assert kept == sorted(["bucket.jsonl", *captions, *(["captions.csv"] if apart else [])]), "captions are versioned"
    found = ingested()
    assert read_json(OUTPUTS[1])["files"]["pictures_kept"] == 6
    records = list(read_ingested(OUTPUTS[0]))
    remove_all()

    set_params(workspace, {"runtime.engine": "local"})
    for name, data in files.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_bytes(data)
    assert ingested() == found
    remove_all()

    FOLDER.mkdir(parents=True)
    with zipfile.ZipFile(FOLDER / "all.zip", "w") as archive:
        for record in records:  # in this order
            archive.writestr(record.origin, files[record.origin])
        for name in files.keys() - {record.origin for record in records}:
            archive.writestr(name, files[name])
    ingested()
    zipped = list(read_ingested(OUTPUTS[0]))
    place = "all.zip:"
    assert [
        replace(
            one,
            origin=one.origin.removeprefix(place),
            copies=[copy.removeprefix(place) for copy in one.copies],
            captions=[replace(caption, file=caption.file.removeprefix(place)) for caption in one.captions],
        )
        for one in zipped
    ] == records


def test_the_list_has_names_sizes_and_etags_and_stays_the_same(store: Store, table: Path) -> None:
    said = add(table=table)
    assert "data/raw/s lists 10 pictures (" in said
    assert f"in {URL}, captions in captions.csv; DVC tracks data/raw/s by data/raw/s.dvc; `dvc repro` trains" in said
    head, *lines = map(json.loads, (FOLDER / "bucket.jsonl").read_text().splitlines())
    assert head == {"bucket": URL, "table": "captions.csv"}
    assert [line["name"] for line in lines] == sorted(PICTURES)
    there = boto3.client("s3").head_object(Bucket="album", Key=f"{KEY}/1.jpg")
    assert lines[0] == {"name": "1.jpg", "size": len(RED), "etag": there["ETag"].strip('"')}
    before = sha256_of(FOLDER)
    add(None)
    assert sha256_of(FOLDER) == before
    assert read(store) == [], "no picture is read"


def test_a_list_of_several_pages_is_whole(store: Store, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    add(table=table)
    listed = read_list(FOLDER)
    assert listed is not None
    assert [one.name for one in listed.objects] == sorted(PICTURES)
    assert len([asked for asked in store.asked if asked.rstrip("/") == "GET /album"]) == 3


def test_again_it_says_what_has_changed_and_only_new_pictures_are_read(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fill({"metadata.jsonl": METADATA.encode()})
    add()
    ingested()
    assert read(store) == sorted([*NAMES, "metadata.jsonl", "nobody.jpg"]), "each once"
    store.asked.clear()
    capsys.readouterr()
    first = ingested()
    unusable = ["cut.jpg", "small.jpg"]  # of which nothing is kept
    assert read(store) == unusable, "the list is as before, and so are the pictures"

    more = METADATA + json.dumps({"file_name": "new.jpg", "text": "new"}) + "\n"
    fill({"new.jpg": jpeg("olive"), "1.jpg": jpeg("cyan"), "metadata.jsonl": more.encode()})
    delete("small.jpg")
    store.asked.clear()
    add(None)
    said = capsys.readouterr().out
    assert "add-bucket: 1 added: 'new.jpg'\n" in said
    assert "add-bucket: 2 changed: '1.jpg', 'metadata.jsonl'\n" in said
    assert "add-bucket: 1 removed: 'small.jpg'\n" in said
    assert (FOLDER / "metadata.jsonl").read_text() == more
    assert read(store) == ["metadata.jsonl"]
    store.asked.clear()
    second = ingested()
    assert read(store) == ["1.jpg", "cut.jpg", "new.jpg"]
    assert second != first
    shutil.rmtree(".work")
    shutil.rmtree("data/ingest")
    assert ingested() == second, "as from scratch"
    add(None)
    assert "nothing has changed" in capsys.readouterr().out


def test_a_copy_of_captions_that_was_deleted_is_made_again(store: Store) -> None:
    fill({"metadata.jsonl": METADATA.encode()})
    add()
    before = sha256_of(FOLDER)
    (FOLDER / "metadata.jsonl").unlink()
    add()
    assert sha256_of(FOLDER) == before


def test_the_table_that_was_given_is_kept_until_another_one_is(store: Store, table: Path) -> None:
    add(table=table)
    add(None)
    assert (FOLDER / "captions.csv").read_text() == TABLE
    other = table.with_name("better.csv")
    other.write_text(TABLE.replace("a caption", "a better caption"))
    add(None, other)
    assert sorted(path.name for path in FOLDER.iterdir()) == ["better.csv", "bucket.jsonl"]


@pytest.mark.parametrize("checks", [True, False], ids=["store compares ETags", "store ignores the condition"])
def test_an_object_that_has_changed_stops_the_run_and_changes_nothing(
    store: Store, table: Path, checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(table=table)
    good = ingested()
    shutil.rmtree(".work")
    if not checks:
        monkeypatch.setattr(store, "ignored", "HTTP_IF_MATCH")
    fill({"a/b/4.jpg": jpeg("cyan")})
    with pytest.raises(DataError, match=rf"^{URL}/a/b/4.jpg: has changed since .*run `image-captioning add-bucket s`"):
        ingested()
    assert sha256_of(*OUTPUTS) == good
    delete("a/b/4.jpg")
    with pytest.raises(DataError, match=rf"^{URL}/a/b/4.jpg: is gone since the bucket was listed"):
        ingested()
    assert sha256_of(*OUTPUTS) == good
    add(None)
    ingested()
    assert "a/b/4.jpg" not in [record.origin for record in read_ingested(OUTPUTS[0])]


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    store: Store, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bucket, "_PATIENCE_SECONDS", 20.0)
    left: dict[str, int] = {}

    def fails(method: str, path: str) -> tuple[str, str] | None:
        left[path] = left.get(path, 4) - 1
        return ("503 Service Unavailable", "ServiceUnavailable") if left[path] >= 0 else None

    store.fails = fails
    add(table=table)
    ingested()
    said = capsys.readouterr().err
    assert said.count("; trying again for 20 s") == 2, "once when listing and once when reading"
    assert read(store) == sorted(5 * [*NAMES, "nobody.jpg"])


def test_a_store_that_stays_down_is_75_and_the_next_run_continues(store: Store, table: Path) -> None:
    add(table=table)
    expected = ingested()
    remove_all()
    add(table=table)
    store.asked.clear()
    busy = ("503 Slow Down", "SlowDown")
    store.fails = lambda method, path: busy if path.endswith(("a/b/4.jpg", "a/ü 3.png")) else None
    with pytest.raises(TemporaryError, match=rf"^{URL}/a/\S+.*; run this again when the store answers$") as error:
        ingested()
    assert error.value.exit_code == 75
    assert "\n" not in str(error.value)
    assert not any(place.exists() for place in OUTPUTS)
    assert not list(Path("data/ingest").glob("*")), "nothing half-written"
    before = set(read(store))
    store.fails = lambda method, path: None
    store.asked.clear()
    assert ingested() == expected
    assert "1.jpg" in before
    assert "1.jpg" not in read(store)
    assert {"a/b/4.jpg", "a/ü 3.png"} <= set(read(store))
    assert [path.name for path in Path(".work/ingest").iterdir()] == ["s.stamps"], "what was kept is not needed longer"


def test_a_list_that_can_not_be_made_leaves_the_last_one(store: Store, table: Path) -> None:
    add(table=table)
    before = sha256_of(FOLDER)
    for answer, kind, words in (
        (("503 Slow Down", "SlowDown"), TemporaryError, "run this again when the store answers"),
        (("403 Forbidden", "AccessDenied"), ConfigError, "access denied .*s3:ListBucket"),
        (("404 Not Found", "NoSuchBucket"), ConfigError, "not found .*check the bucket's name and endpoint"),
        (("400 Bad Request", "InvalidRequest"), ConfigError, "check the bucket's name, region and endpoint"),
    ):
        store.fails = lambda method, path, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(kind, match=f"^{URL}: .*{words}") as error:
            add(None)
        assert "\n" not in str(error.value)
        assert sha256_of(FOLDER) == before
    assert [path.name for path in FOLDER.parent.iterdir()] == ["s"]


def test_without_rights_or_credentials_it_is_78(store: Store, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(table=table)
    store.fails = lambda method, path: ("403 Forbidden", "AccessDenied")
    with pytest.raises(ConfigError, match=rf"^{URL}/\S.*: access denied .*s3:GetObject") as error:
        ingested()
    assert error.value.exit_code == 78
    store.fails = lambda method, path: ("403 Forbidden", "InvalidObjectState") if path.endswith("4.jpg") else None
    with pytest.raises(ConfigError, match=rf"^{URL}/a/b/4.jpg: access denied .*; "):
        ingested()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="found no credentials; set AWS_ACCESS_KEY_ID"):
        ingested()
    with pytest.raises(ConfigError, match="found no credentials; set AWS_ACCESS_KEY_ID"):
        add(None)
    assert not any(place.exists() for place in OUTPUTS)


def test_keys_that_are_no_paths_and_archives_are_set_aside(
    store: Store, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(
        {"../../out.jpg": RED, "/root.jpg": RED, "back\\slash.jpg": RED, "x//y.jpg": RED, "z.zip": b"PK", "no.jpg": b""}
    )
    with table.open("a") as file:
        file.write("no.jpg,an empty file\nout.jpg,outside\n")
    before = set(tmp_path.rglob("*"))
    add(table=table)
    assert "add-bucket: 1 archives are not read; unpack them in the bucket, or download them" in capsys.readouterr().out
    ingested()
    aside = read_json(OUTPUTS[1])["files"]["set_aside"]
    assert (aside["unsafe_key"], aside["nested_archive"], aside["not_a_picture"]) == (4, 1, 1)
    outside = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert all(path.is_relative_to(tmp_path / "work space") for path in outside)
    assert not list(tmp_path.rglob("out.*"))


def test_captions_that_would_be_copied_out_of_the_folder_are_refused(store: Store, tmp_path: Path) -> None:
    fill({"../../captions.csv": TABLE.encode()})
    with pytest.raises(DataError, match=r"captions\.csv: has captions, but can't be read \(unsafe_key\)"):
        add()
    assert not list(tmp_path.rglob("captions.csv"))
    assert not FOLDER.exists()


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (None, ConfigError, "is no bucket; name it s3://BUCKET/PREFIX"),
        ("https://example.org", ConfigError, "is no bucket; name it s3://BUCKET/PREFIX"),
        ("s3://", ConfigError, "names no bucket"),
        ("s3://album/none", DataError, "found 0 objects, but no JPEG"),
        (URL, DataError, "found 9 .jpg .* but no captions; .*; or name a table with --captions"),
    ],
)
def test_what_is_no_source_is_one_line_and_leaves_nothing(
    store: Store, url: str | None, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as error:
        add(url)
    assert "\n" not in str(error.value)
    assert ".partial" not in str(error.value)
    assert not list(Path("data/raw").glob("*")) or not Path("data/raw").exists()


def test_names_that_are_taken_are_said(store: Store, table: Path) -> None:
    with pytest.raises(ConfigError, match="NAME: found '../x'"):
        command.add_bucket(params.load(), "../x", URL, table)
    with pytest.raises(ConfigError, match=r"nothing\.csv: not found"):
        add(table=Path("nothing.csv"))
    fill({"captions.csv": TABLE.encode()})
    with pytest.raises(ConfigError, match=r"captions\.csv: is in the bucket too; rename"):
        add(table=table)
    delete("captions.csv")
    FOLDER.mkdir(parents=True)
    with pytest.raises(ConfigError, match="data/raw/s: exists already, and is not in a bucket"):
        add(table=table)
    FOLDER.rmdir()
    Path("data/raw/s.dvc").touch()
    with pytest.raises(ConfigError, match=r"data/raw/s: is not here; run `dvc pull data/raw/s\.dvc` first"):
        add(table=table)
    Path("data/raw/s.dvc").unlink()
    add(table=table)
    (FOLDER / "1.jpg").write_bytes(RED)
    with pytest.raises(ConfigError, match=f"{URL}/1.jpg: s has a file of the same name"):
        add(None)


def without_a_line(text: str) -> str:
    return "\n".join(text.split("\n")[1:])


def twice(text: str) -> str:
    return text + text.split("\n")[-2] + "\n"


DAMAGE: list[Callable[[str], str]] = [
    without_a_line,
    twice,
    lambda text: "",
    lambda text: text[:-20],
    lambda text: text.replace('"size": ', '"size": -'),
    lambda text: text.replace('"size": ', '"site": '),
    lambda text: text.replace("s3://album", "https://album"),
    lambda text: text.replace('"name": "', '"name": ["'),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_list_is_one_line(store: Store, table: Path, damage: Callable[[str], str]) -> None:
    add(table=table)
    file = FOLDER / "bucket.jsonl"
    file.write_text(damage(file.read_text()))
    for step in (ingested, lambda: add(None)):
        with pytest.raises(
            DataError, match=r"^data/raw/s/bucket\.jsonl: line \d+: .*; run `dvc checkout data/raw/s.dvc`"
        ):
            step()


def test_pictures_above_the_limit_are_not_read(store: Store, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(table=table)
    monkeypatch.setattr(ingest, "_MAX_PICTURE_BYTES", len(GREEN) - 1)
    ingested()
    assert read_json(OUTPUTS[1])["files"]["set_aside"]["too_many_bytes"] == 1
    assert "a/ü 3.png" not in read(store)


def test_init_sets_up_a_training_on_a_bucket(store: Store, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "track", lambda folder: None)
    monkeypatch.setattr(init, "_hub_commit", lambda: None)
    said = init.init(params.load(), URL, table, "mine", gpu=False)
    assert "`dvc repro` trains" in said
    assert params.load().ingest.sources == ["s", "mine"]
    assert sorted(path.name for path in Path("data/raw/mine").iterdir()) == ["bucket.jsonl", "captions.csv"]


def test_a_correction_finds_the_raw_picture_in_the_bucket(store: Store, table: Path) -> None:
    add(table=table)
    ingested()
    records = {record.origin: record for record in read_ingested(OUTPUTS[0])}
    record = records["a/ü 3.png"]
    example = Example(record.file_name, ["green"], record.sha256, ["s"], [record.origin])
    assert raw_picture(example) == GREEN
    store.fails = lambda method, path: ("503 Slow Down", "SlowDown")
    with pytest.raises(DataError, match=f"^{URL}/a/ü 3.png: .*run this again"):
        raw_picture(example)
