from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import sys
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import build, ingest
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError
from pipeline.data.audit import SetAside, read_set_aside, write_set_aside
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.data.images import identity
from pipeline.data.split import SPLITS, split_of
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.synthetic.sample import write_sample
from pipeline.tracking import run_metrics
from tests.conftest import ROOT, jpeg, run, set_params


def build_from(*sources: str) -> dict:
    set_params(Path.cwd(), {"ingest.sources": list(sources)})
    for source in sources:
        ingest.run(params.load(), Namespace(source=source))
    build.run(params.load(), Namespace())
    return read_json(Path("reports/build.json"))


def check_audit(report: dict) -> None:
    """Check that all raw pictures and captions are kept or listed in reports/set_aside.csv."""
    aside = list(read_set_aside(Path("reports/set_aside.csv")))
    for kind, key in (("file", "pictures"), ("row", "captions")):
        account = report[key]
        listed = [item for item in aside if item.kind == kind]
        assert account["in"] == sum(account["kept"].values()) + len(listed)
        assert account["set_aside"] == dict(sorted(Counter(item.reason for item in listed).items()))
    examples = [e for split in SPLITS for e in read_examples(Path("data/dataset") / split)]
    assert sum(report["pictures"]["kept"].values()) == len(examples)
    assert sum(report["captions"]["kept"].values()) == sum(len(e.captions) for e in examples)


def splits() -> dict[str, str]:
    return {e.sha256: split for split in SPLITS for e in read_examples(Path("data/dataset") / split)}


def test_every_raw_picture_and_caption_is_accounted_for(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=60, seed=3)
    report = build_from("sample")
    check_audit(report)
    assert report["pictures"]["in"] == 66
    assert report["captions"]["set_aside"]["same_caption"] == 1


faults = st.sampled_from(
    ["good", "good", "good", "cut", "no picture", "no caption", "empty", "lost", "long", "endless", "again"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(faults, max_size=30), st.lists(faults, max_size=10))
def test_the_audit_adds_up_whatever_is_wrong_with_the_sources(
    workspace: Path, bring: Callable[..., Path], one: list[str], two: list[str]
) -> None:
    shutil.rmtree(workspace / "data", ignore_errors=True)
    set_params(workspace, {"ingest.max_set_aside": 1.0, "build.validation": 0, "build.test": 0.1})
    for name, kinds in (("one", one), ("two", two)):
        files, rows = {"always.jpg": jpeg("blue")}, [["always.jpg", "always there"]]
        for k, kind in enumerate(kinds):
            picture = jpeg("red", (30 + k, 30 + 3 * len(kind)))  # the same in both sources where kinds agree
            files[f"{k}.jpg"] = {"cut": picture[:200], "no picture": b"text"}.get(kind, picture)
            caption = {"empty": " ", "long": "word " * 101, "endless": "a," * 3000}.get(kind, f"caption {k} 🔥")
            if kind == "lost":
                del files[f"{k}.jpg"]
            if kind != "no caption":
                rows += [[f"{k}.jpg", caption]] * (2 if kind == "again" else 1)
        files |= {f"more {k}.jpg": jpeg("green", (60 + k, 200 - k)) for k in range(40)}
        rows += [[f"more {k}.jpg", "more of it"] for k in range(40)]
        bring(name, files, rows)
    set_params(workspace, {"build.near_duplicate_bits": 0})
    check_audit(build_from("one", "two"))


def test_captions_are_cleaned_by_the_policy_or_set_aside(workspace: Path, bring: Callable[..., Path]) -> None:
    write_sample(workspace / "data/raw/more", pictures=40, seed=5)
    rows = [["a.jpg", "so good🔥"], ["a.jpg", "so good fire"], ["a.jpg", "one"], ["b.jpg", "@someone ..."]]
    rows += [["a.jpg", f"so {'a,' * 2500}"]]
    bring("s", {"a.jpg": jpeg(size=(50, 60)), "b.jpg": jpeg("blue", (90, 30))}, rows)
    set_params(workspace, {"build.captions.emoji": "words", "build.captions.min_words": 2})
    report = build_from("s", "more")
    (example,) = (e for split in SPLITS for e in read_examples(Path("data/dataset") / split) if "s" in e.sources)
    assert example.captions == ["so good fire"]
    check_audit(report)
    aside = [item for item in read_set_aside(Path("reports/set_aside.csv")) if item.source == "s"]
    assert sorted(aside, key=lambda item: item.row or 0) == [
        SetAside("file", "s", "images.zip:b.jpg", None, "no_caption_left"),
        SetAside("row", "s", "captions.csv", 3, "same_caption", "images.zip:a.jpg"),
        SetAside("row", "s", "captions.csv", 4, "too_few_words", "images.zip:a.jpg"),
        SetAside("row", "s", "captions.csv", 5, "too_few_words", "images.zip:b.jpg"),
        SetAside("row", "s", "captions.csv", 6, "too_many_words", "images.zip:a.jpg"),
    ]
    assert {"before": "so good🔥", "after": "so good fire"} in report["captions_changed"]["examples"]


def test_dvc_metrics_shows_at_most_eight_counts(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    report, shown = build_from("sample"), read_json(Path("reports/build.metrics.json"))
    assert 0 < len(shown) <= 8
    assert [shown[f"{split}_pictures"] for split in SPLITS] == list(report["pictures"]["kept"].values())
    assert shown["captions"] == sum(report["captions"]["kept"].values())
    assert shown["unknown_tokens"] is None  # the tiny model starts from scratch


def test_a_policy_that_leaves_too_little_stops_the_run_and_changes_nothing(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    build_from("sample")
    before = sha256_of(Path("data/dataset"), Path("reports"))
    set_params(workspace, {"build.captions.min_words": 90})
    with pytest.raises(DataError, match=r"too_few_words.*max_set_aside.*\.work/set_aside/build\.csv"):
        build_from("sample")
    assert {item.reason for item in read_set_aside(Path(".work/set_aside/build.csv"))} > {"too_few_words"}
    assert sha256_of(Path("data/dataset"), Path("reports")) == before


def test_unknown_tokens_are_reported_with_the_fix(
    workspace: Path, bring: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(workspace, {"finetune.checkpoint": str(ROOT / "models/git-demo")})
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    assert build_from("sample")["unknown_tokens"]["share"] < 0.02
    assert "unknown" not in capsys.readouterr().out
    rows = [[f"{k}.jpg", "a page 🧿🧿"] for k in range(3)]
    bring("odd", {f"{k}.jpg": jpeg("red", (30 + 20 * k, 40)) for k in range(3)}, rows)
    set_params(workspace, {"build.validation": 0, "build.test": 0, "build.max_unknown_words": 0.5})
    report = build_from("odd")
    assert report["unknown_tokens"]["most_frequent"] == {"🧿": 6}
    said = capsys.readouterr().out
    assert "50.0% of the caption words are unknown" in said
    assert "set build.captions.emoji to `words`" in said
    set_params(workspace, {"finetune.new_tokens": 1})
    assert build_from("odd")["unknown_tokens"]["unknown"] == 0
    assert "unknown" not in capsys.readouterr().out
    set_params(workspace, {"finetune.new_tokens": 0, "build.captions.emoji": "words"})
    assert build_from("odd")["unknown_tokens"]["share"] == 0


def test_captions_that_the_checkpoint_cannot_say_stop_the_run(workspace: Path, bring: Callable[..., Path]) -> None:
    set_params(workspace, {"finetune.checkpoint": str(ROOT / "models/git-demo")})
    rows = [[f"{k}.jpg", "一只狗在草地上奔跑"] for k in range(60)]
    bring("zh", {f"{k}.jpg": photo(k) for k in range(60)}, rows)
    with pytest.raises(ConfigError, match=r"100\.0% of the caption words are unknown to .*git-demo.*max_unknown_words"):
        build_from("zh")
    assert not Path("data/dataset").exists()
    done = run(workspace, sys.executable, "-m", "pipeline.build")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    set_params(workspace, {"finetune.checkpoint": "scratch"})
    assert build_from("zh")["unknown_tokens"] is None


def test_cut_captions_are_counted_and_stop_the_run_above_the_limit(
    workspace: Path, bring: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(workspace, {"finetune.checkpoint": str(ROOT / "models/git-demo"), "finetune.max_tokens": 6})
    rows = [[f"{k}.jpg", "a red boat" if k % 4 else "a red boat and a red boat"] for k in range(40)]
    bring("s", {f"{k}.jpg": photo(k) for k in range(40)}, rows)
    report = build_from("s")
    cut = report["cut_captions"]
    assert (cut["max_tokens"], cut["captions"], cut["share"], cut["tokens"]) == (6, 10, 0.25, 30)
    assert cut["share_of_tokens"] == round(30 / (30 * 3 + 10 * 7), 6)
    assert cut["examples"][0] == {"kept": "a red boat and", "lost": " a red boat"}
    assert "10 captions (25.0%) are longer than finetune.max_tokens = 6" in capsys.readouterr().out
    assert "Training cuts them" in Path("reports/data.html").read_text()
    shown = run_metrics.of_build(report)
    assert (shown["data/cut_captions"], shown["data/unknown_words"]) == (0.25, 0)
    set_params(workspace, {"build.max_cut_captions": 0.2})
    with pytest.raises(ConfigError, match=r"build\.max_cut_captions = 0\.2; raise finetune\.max_tokens"):
        build_from("s")


def photo(seed: int, quality: int = 90, size: tuple[int, int] = (160, 120)) -> bytes:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_excluded_pictures_and_their_near_duplicates_are_left_out_of_every_source(
    workspace: Path, bring: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"img/{k}.jpg": photo(k) for k in range(40)} | {"again/cover.jpg": photo(20)}
    bring("one", files, [[f"{k}.jpg", f"one {k}"] for k in range(40)])
    bring("two", {f"{k}.jpg": photo(k, 60) for k in range(8)}, [[f"{k}.jpg", f"two {k}"] for k in range(8)])
    folder = workspace / "data/excluded"
    folder.mkdir(parents=True)
    (folder / ".gitignore").write_text("*")
    (folder / "small copy.jpg").write_bytes(photo(3, 80, (80, 60)))
    sha256 = hashlib.sha256(photo(1)).hexdigest()
    entries = [sha256, "img/2.jpg", "images.zip:img/30.jpg", "g/4.jpg", "data/excluded", "cover.jpg", "lost.jpg"]
    set_params(workspace, {"ingest.exclude": entries})
    report = build_from("one", "two")
    captions = {c for split in SPLITS for e in read_examples(Path("data/dataset") / split) for c in e.captions}
    assert not captions & {f"{source} {k}" for source in ("one", "two") for k in (1, 2, 3, 20, 30)}
    assert "one 4" in captions
    assert report["excluded"] == dict(zip(entries, [2, 2, 1, 0, 2, 1, 0], strict=True))
    assert report["pictures"]["set_aside"]["excluded"] == 8
    check_audit(report)
    said = capsys.readouterr().out
    assert "'lost.jpg' is no folder and matches no picture" in said
    assert "'g/4.jpg'" in said
    (folder / "note.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"data/excluded/note\.txt: is not a JPEG"):
        build_from("one", "two")


def test_pictures_of_a_post_are_in_one_split(workspace: Path) -> None:
    posts = [{"title": f"post {k}", "media": [{"uri": f"media/{k}-{j}.jpg"} for j in range(3)]} for k in range(60)]
    folder = workspace / "data/raw/me"
    (folder / "media").mkdir(parents=True)
    (folder / "posts_1.json").write_text(json.dumps(posts))
    for k in range(60):
        for j in range(3):
            (folder / f"media/{k}-{j}.jpg").write_bytes(photo(3 * k + j))
    build_from("me")
    where: dict[str, set[str]] = {}
    for split in SPLITS:
        for example in read_examples(Path("data/dataset") / split):
            where.setdefault(example.captions[0], set()).add(split)
    assert len(where) == 60
    assert all(len(found) == 1 for found in where.values())
    assert {split for found in where.values() for split in found} == set(SPLITS)


def karpathy(splits: dict[int, str]) -> bytes:
    images = [
        {"filename": f"{k}.jpg", "split": split, "sentences": [{"raw": f"caption {k}"}]} for k, split in splits.items()
    ]
    return json.dumps({"images": images}).encode()


def split_numbers() -> dict[int, str]:
    """Return the split of each picture, by the number in its caption."""
    return {
        int(example.captions[0].split()[-1]): split
        for split in SPLITS
        for example in read_examples(Path("data/dataset") / split)
    }


def test_the_splits_of_a_published_data_set_are_kept(
    workspace: Path, bring: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {k: ("train", "restval", "val", "test")[k % 4] for k in range(40)}
    folder = bring("s", {f"{k}.jpg": photo(k) for k in range(40)}, None)
    (folder / "dataset_coco.json").write_bytes(karpathy(wanted))
    report = build_from("s")
    assert split_numbers() == {k: ("train", "train", "validation", "test")[k % 4] for k in range(40)}
    assert report["own_splits"] == {"s": {"test": 10, "train": 20, "validation": 10}}
    check_audit(report)
    assert "s: its own splits are used (train 20, validation 10, test 10)" in capsys.readouterr().out
    set_params(workspace, {"build.splits": "hash"})
    assert build_from("s")["own_splits"] == {}
    assert split_numbers() == {k: split_of(identity(photo(k)), 0.1, 0.15) for k in range(40)}


def test_a_source_in_which_a_picture_has_no_split_has_none(workspace: Path, bring: Callable[..., Path]) -> None:
    for name, wanted in (("one", {40: "none"}), ("all train", {})):
        shutil.rmtree(workspace / "data", ignore_errors=True)
        splits = dict.fromkeys(range(40), "train" if name == "all train" else "test") | wanted
        folder = bring("s", {f"{k}.jpg": photo(k) for k in range(41)}, None)
        (folder / "dataset_x.json").write_bytes(karpathy(splits))
        assert build_from("s")["own_splits"] == {}
        assert split_numbers() == {k: split_of(identity(photo(k)), 0.1, 0.15) for k in splits}


@pytest.mark.parametrize("layout", ["imagefolder", "zips", "COCO"])
def test_folders_and_files_of_a_split_are_its_pictures(
    workspace: Path, bring: Callable[..., Path], layout: str
) -> None:
    folder = workspace / "data/raw/s"
    for split, numbers in (("train", range(30)), ("val", range(30, 40))):
        names = [f"{k}.jpg" for k in numbers]
        lines = "".join(json.dumps({"file_name": n, "text": f"caption {n[:-4]}"}) + "\n" for n in names)
        if layout == "imagefolder":
            (folder / split).mkdir(parents=True)
            for k in numbers:
                (folder / split / f"{k}.jpg").write_bytes(photo(k))
            (folder / split / "metadata.jsonl").write_text(lines)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for k in numbers:
                archive.writestr(f"{k}.jpg", photo(k))
            if layout == "zips":
                archive.writestr("metadata.jsonl", lines)
        if layout == "COCO":
            images = [{"id": k, "file_name": f"{k}.jpg"} for k in numbers]
            notes = [{"image_id": k, "caption": f"caption {k}"} for k in numbers]
            content = json.dumps({"images": images, "annotations": notes})
            (folder / f"captions_{split}2017.json").write_text(content)
    build_from("s")
    # There is no test split, so it is taken from the train split.
    by_hash = {k: split_of(identity(photo(k)), 0.1, 0.15) for k in range(30)}
    train = {k: "test" if split == "test" else "train" for k, split in by_hash.items()}
    assert split_numbers() == train | dict.fromkeys(range(30, 40), "validation")


def test_a_source_that_gets_splits_later_moves_no_test_picture_to_train(
    workspace: Path, bring: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """As when COCO's train2017 comes first and val2017 later."""
    folder = bring("s", {f"{k}.jpg": photo(k) for k in range(60)}, None)
    (folder / "dataset_x.json").write_bytes(karpathy(dict.fromkeys(range(50), "train")))
    build_from("s")
    before = split_numbers()
    wanted = dict.fromkeys(range(50), "train") | {k: ("val", "test")[k % 2] for k in range(50, 60)}
    (folder / "dataset_x.json").write_bytes(karpathy(wanted))
    build_from("s")
    after = split_numbers()
    assert {k: after[k] for k in before} == before
    held_out = sum(split != "train" for split in before.values())
    assert held_out > 0
    assert f"{held_out} of its train pictures stay in validation or test" in capsys.readouterr().out


def test_more_data_or_another_size_moves_no_picture_to_another_split(workspace: Path) -> None:
    write_sample(workspace / "data/raw/one", pictures=60, seed=3)
    write_sample(workspace / "data/raw/two", pictures=40, seed=4)
    build_from("one")
    before = splits()
    set_params(workspace, {"ingest.image_size": 48})
    build_from("two", "one")
    after = splits()
    assert len(after) > len(before)
    assert all(after.get(picture, split) == split for picture, split in before.items())


def test_unchanged_shards_of_a_grown_archive_are_not_written_again(
    workspace: Path, bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.dataset.SHARD_PICTURES", 10)
    folders = [Path("data/ingest/s"), *(Path("data/dataset") / split for split in SPLITS)]

    def build_first(count: int) -> dict[Path, int]:
        shutil.rmtree(workspace / "data/raw", ignore_errors=True)
        bring("s", {f"{k}.jpg": photo(k) for k in range(count)}, [[f"{k}.jpg", f"caption {k}"] for k in range(count)])
        build_from("s")
        return {shard: shard.stat().st_ino for folder in folders for shard in folder.glob("pictures-*.zip")}

    before, after = build_first(60), build_first(64)
    same = [shard for shard in before if before[shard] == after[shard]]
    assert Path("data/ingest/s/pictures-0005.zip") in same
    assert Path("data/ingest/s/pictures-0006.zip") in after
    assert len(before) - len(same) <= 3  # the last of each split, where it was not full
    incremental = sha256_of(Path("data/ingest"), Path("data/dataset"), Path("reports"))
    for folder in ("data/ingest", "data/dataset", "reports"):
        shutil.rmtree(workspace / folder)
    build_first(64)
    assert sha256_of(Path("data/ingest"), Path("data/dataset"), Path("reports")) == incremental
    # Other captions are other lines in the shards.
    table = workspace / "data/raw/s/captions.csv"
    table.write_text(table.read_text().replace("caption ", "words "))
    build_from("s")
    for shard in Path("data/dataset/train").glob("pictures-*.zip"):
        with zipfile.ZipFile(shard) as archive:
            lines = archive.read("metadata.jsonl").decode()
        assert "words " in lines
        assert "caption " not in lines


def test_a_picture_in_two_sources_is_merged_with_the_captions_of_both(
    workspace: Path, bring: Callable[..., Path]
) -> None:
    write_sample(workspace / "data/raw/more", pictures=40, seed=5)
    bring("one", {"a.jpg": jpeg()}, [["a.jpg", "first"], ["a.jpg", " both\n"]])
    bring("two", {"b.jpg": jpeg()}, [["b.jpg", "both"], ["b.jpg", "second"]])
    report = build_from("one", "two", "more")
    (example,) = (e for split in SPLITS for e in read_examples(Path("data/dataset") / split) if "one" in e.sources)
    assert example.captions == ["first", "both", "second"]
    assert example.sources == ["one", "two"]
    assert example.origins == ["images.zip:a.jpg", "images.zip:b.jpg"]
    assert report["pictures"]["set_aside"]["in_several_sources"] == 1


def test_near_duplicates_are_never_in_two_splits(workspace: Path, bring: Callable[..., Path]) -> None:
    files, rows = {}, []
    for k in range(30):
        for quality in (60, 90, 95):
            files[f"{k}-{quality}.jpg"] = photo(k, quality)
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


def test_the_order_of_sources_does_not_change_the_data_set(workspace: Path) -> None:
    write_sample(workspace / "data/raw/one", pictures=30, seed=3)
    write_sample(workspace / "data/raw/two", pictures=30, seed=4)
    build_from("one", "two")
    first = sha256_of(Path("data/dataset"))
    build_from("two", "one")
    assert sha256_of(Path("data/dataset")) == first


def test_too_few_pictures_are_an_error_and_keep_the_last_data_set(workspace: Path, bring: Callable[..., Path]) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    build_from("sample")
    before = sha256_of(Path("data/dataset"), Path("reports/build.json"))
    bring("tiny", {"a.jpg": jpeg()}, [["a.jpg", "alone"]])
    with pytest.raises(DataError, match=r"would be empty: 1 pictures are too few"):
        build_from("tiny")
    assert sha256_of(Path("data/dataset"), Path("reports/build.json")) == before


def test_hugging_face_datasets_reads_the_data_set(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("pipeline.data.dataset.SHARD_PICTURES", 20)  # so that there are several shards
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


def test_lines_are_readable_json(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    build_from("sample")
    line = json.loads((Path("data/dataset/train/captions.jsonl")).read_text().split("\n")[0])
    assert set(line) == {"file_name", "captions", "sha256", "sources", "origins"}


def test_names_that_a_spreadsheet_would_run_as_formulas_are_escaped(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://x.org","open").jpg', "+1.jpg", "-1.jpg", "@a.jpg", "'quoted.jpg", "plain.jpg"]
    aside = [SetAside("row", "s", name, 1, "picture_missing", name) for name in names]
    write_set_aside(tmp_path / "set_aside.csv", aside)
    with (tmp_path / "set_aside.csv").open(newline="") as file:
        assert [row["file"][0] + row["names"][0] for row in csv.DictReader(file)] == ["''"] * 5 + ["pp"]
    assert list(read_set_aside(tmp_path / "set_aside.csv")) == aside


def test_a_fair_share_prefers_no_source() -> None:
    examples = [Example(f"{k}.jpg", ["x"], f"{(7 * k) % 10}", ["s"], ["o"]) for k in range(10)]
    chosen = fair_share(examples, 3)
    assert {example.sha256 for example in chosen} == {"0", "1", "2"}
    assert chosen == [example for example in examples if example in chosen]
    assert fair_share(examples, 10) == examples
