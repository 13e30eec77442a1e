"""Watching what comes in: what is recorded, and when there is an alarm."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import tracemalloc
import zipfile
from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipeline import build, cli
from pipeline.commands import watch
from pipeline.config import params
from pipeline.data.images import decode
from pipeline.data.sources.corrections import Correction
from pipeline.models.captioner import Captioner
from pipeline.runtime.atomic_files import read_json
from pipeline.serving import service as service_module
from pipeline.serving.corrections import Corrections
from pipeline.serving.drift import ALPHA, Look, looks
from pipeline.serving.watch import Recorder, Seen, hash_of, read_week, week_of, write
from pipeline.synthetic.scenes import draw, random_scene
from pipeline.tracking import downloads, registry, runs
from tests.app.conftest import data_set
from tests.conftest import ROOT, SHARED, set_params
from tests.serving.conftest import Start
from tests.serving.test_service import post

__all__ = ["data_set"]  # a fixture
MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
VOCABULARY = [f"word{k}" for k in range(60)]


def drawn(
    rng: np.random.Generator, count: int, shift: float = 0.0, words: float = 0.0, score: float = 0.0
) -> list[Seen]:
    """Pictures with correlated, skewed features and captions of Zipf-distributed words."""
    mixing = np.random.default_rng(0).normal(size=(64, 64))
    share = 1 / np.arange(1, 61) ** (1 - words)
    share /= share.sum()
    return [
        Seen(
            sha256=f"{rng.integers(2**62):064x}",
            model="toy",
            version=3,
            caption=" ".join(rng.choice(VOCABULARY, 8, p=share)),
            score=float(-rng.exponential(0.4) + score),
            features=((rng.exponential(1, 64) + shift * (np.arange(64) < 8)) @ mixing).astype(np.float32),
        )
        for _ in range(count)
    ]


def alarms(found: list[Look]) -> list[tuple[str, list[str]]]:
    return [(look.week, look.alarms) for look in found if look.alarms]


def test_twenty_weeks_of_the_same_data_raise_at_most_one_alarm() -> None:
    rng = np.random.default_rng(1)
    weeks = {f"2026-W{k:02}": drawn(rng, 60) for k in range(1, 21)}
    assert len(alarms(looks(weeks, drawn(rng, 150)))) <= 1


@pytest.mark.slow
def test_of_twenty_histories_of_twenty_weeks_of_the_same_data_hardly_any_has_an_alarm() -> None:
    alarmed = 0
    for history in range(20):
        rng = np.random.default_rng(history)
        weeks = {f"2026-W{k:02}": drawn(rng, 60) for k in range(1, 21)}
        found = alarms(looks(weeks, drawn(rng, 150)))
        assert len(found) <= 1, f"history {history}: {found}"
        alarmed += len(found)
    assert alarmed <= 3, "the error of a whole history is 5 %, so of 20 histories about one has an alarm"


@pytest.mark.parametrize(
    ("change", "what"),
    [({"shift": 3.0}, "pictures"), ({"words": 0.8}, "words"), ({"score": -0.8}, "confidence")],
)
def test_a_change_raises_an_alarm_of_its_kind_within_two_weeks_even_after_a_year(
    change: dict[str, float], what: str
) -> None:
    rng = np.random.default_rng(5)
    weeks = {f"2026-W{k:02}": drawn(rng, 40) for k in range(1, 51)}
    weeks |= {f"2026-W{k:02}": drawn(rng, 100, **change) for k in (51, 52)}
    found = dict(alarms(looks(weeks, drawn(rng, 150))))
    assert what in found.get("2026-W51", []) + found.get("2026-W52", [])
    assert set(found) <= {"2026-W51", "2026-W52"}


def test_the_thresholds_of_all_weeks_sum_to_the_total_error_and_small_weeks_take_none() -> None:
    rng = np.random.default_rng(1)
    weeks = {f"2026-W{k:02}": drawn(rng, 30 if k % 2 else 29) for k in range(1, 21)}
    found = looks(weeks, drawn(rng, 60))
    assert [look.week for look in found] == [f"2026-W{k:02}" for k in range(1, 21, 2)]
    assert found[0].threshold == ALPHA / 2
    assert sum(look.threshold for look in found) < ALPHA
    assert sum(ALPHA / (k * (k + 1)) for k in range(1, 100_000)) == pytest.approx(ALPHA, abs=1e-6)


def test_each_picture_of_a_week_is_recorded_once_and_no_picture_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    seen = drawn(rng, 5)
    recorder = Recorder(tmp_path, most=6)
    recorder.record([*seen, seen[0]], MONDAY)
    recorder.record(seen[:2], MONDAY)
    file = tmp_path / "2026-W10.jsonl"
    with file.open("a") as stream:
        stream.write('{"sha256": "cut')
    Recorder(tmp_path, most=6).record([replace(seen[0], caption="again")], MONDAY)
    read = read_week(file)
    assert [one.sha256 for one in read] == [one.sha256 for one in seen]
    assert read[0].caption == seen[0].caption
    assert np.allclose(read[0].features, seen[0].features, rtol=2e-3)
    assert set(json.loads(file.read_text().splitlines()[0])) == {
        "sha256", "model", "version", "caption", "score", "features", "made_by",
    }  # fmt: skip
    again = Recorder(tmp_path / "more", most=6)
    again.record(drawn(rng, 20), MONDAY)
    assert len(read_week(tmp_path / "more/2026-W10.jsonl")) == 6
    for _ in range(3):
        again.record(drawn(rng, 20), MONDAY)
    assert len(read_week(tmp_path / "more/2026-W10.jsonl")) == 6, "a full week takes no more"
    again.record(drawn(rng, 2), datetime(2026, 3, 9, tzinfo=UTC))
    assert len(read_week(tmp_path / "more/2026-W11.jsonl")) == 2


def test_the_service_records_only_if_it_is_asked_to(
    start: Start, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = post(start(), pictures[:3]).json()
    assert not Path("data").exists()
    assert post(start(watch=True), pictures[:3]).json() == said, "the answers are the same"
    (file,) = Path("data/watch").iterdir()
    assert file.stem == week_of(datetime.now(UTC))
    recorded = read_week(file)
    assert sorted(one.caption for one in recorded) == sorted(one["captions"][0] for one in said["results"])
    assert {(one.model, one.version) for one in recorded} == {("toy", 1)}
    assert sorted(path.name for path in Path("data").rglob("*")) == [file.name, "watch"]


def test_only_what_the_served_version_says_in_its_usual_way_is_recorded(
    start: Start, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The challenger's captions would make `watch` judge the wrong version, and other beams shift the scores."""
    monkeypatch.chdir(tmp_path)
    client = start(watch=True)
    for number, options in enumerate(({"challenger": True}, {"beams": 1}, {"sampling": True}, {"n": 2})):
        end = time.monotonic() + 60
        while post(client, pictures[number : number + 1], **options).status_code == 503:  # the challenger is loaded
            assert time.monotonic() < end
            time.sleep(0.05)
    (file,) = Path("data/watch").iterdir()
    (one,) = read_week(file)
    alone = post(client, pictures[3:4]).json()["results"][0]
    assert (one.version, one.caption) == (1, alone["captions"][0])


def test_people_get_their_captions_if_the_record_cannot_be_written(
    start: Start, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(self: Recorder, seen: list[Seen]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(service_module.Recorder, "record", full)
    assert post(start(watch=True), pictures[:1]).status_code == 200
    assert "not recorded in data/watch: No space left on device" in capsys.readouterr().out


def test_without_a_complete_week_the_command_says_what_to_do(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(cli.app, ["watch"])
    assert done.exit_code == 78
    assert "set serving.watch to true" in done.stderr


def test_only_the_weeks_of_the_newest_version_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(6)
    seen = [replace(one, features=np.zeros(8192, np.float32)) for one in drawn(rng, 50)]
    for number in range(1, 21):
        version = 1 if number < 19 else 2
        write(Path(f"data/watch/2026-W{number:02}.jsonl"), [replace(one, version=version) for one in seen])
    write(Path("data/watch/2026-W20.jsonl"), [replace(seen[0], version=None), replace(seen[1], version=1)])
    tracemalloc.start()
    try:
        newest, weeks = watch._complete_weeks()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (newest, {week: len(found) for week, found in weeks.items()}) == (
        ("toy", 2),
        {"2026-W19": 50, "2026-W20": 50},
    )
    assert peak < 16 * 2**20, "all weeks take 33 MB"


@pytest.fixture
def recorded(data_set: Path, mlflow_db: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of drawings, a registered git-demo, and two weeks of other captions that were recorded."""
    shutil.copy(mlflow_db, data_set)
    store = runs.client()
    store.create_registered_model("toy")
    store.create_model_version("toy", source=data_set.as_uri())
    monkeypatch.setattr(downloads, "checkpoint_of", lambda uri, cache_gb: ROOT / "models" / "git-demo")
    set_params(data_set, {"build.validation": 0.3, "evaluate.generation.beams": 1})
    build.run(params.load(), Namespace())
    record()
    return data_set


def record() -> None:
    """Two weeks in which the service captions with the params of today, and a week that is not over."""
    shutil.rmtree("data/watch", ignore_errors=True)
    rng, key = np.random.default_rng(4), watch._made_by(params.load(), "toy", 1)
    seen = [replace(one, version=1, caption="a spaceship", made_by=key) for one in drawn(rng, 80)]
    seen = [replace(one, features=np.resize(one.features, 128)) for one in seen]
    for week, part in (("2026-W09", seen[:40]), ("2026-W10", seen[40:]), ("9999-W01", seen)):
        write(Path(f"data/watch/{week}.jsonl"), part)


def test_the_command_compares_complete_weeks_with_the_validation_split_and_tags_the_version(recorded: Path) -> None:
    for action, name in (("accept", "a"), ("edit", "b")):
        one = Correction(
            id=name, at="2026-03-04T00:00:00+00:00", who="ann", action=action, sha256=64 * name, said="a spaceship",
            caption="a car", model="toy", version=1,
        )  # fmt: skip
        Corrections()._journal.append(one.model_dump_json(exclude_none=True))
    done = CliRunner().invoke(cli.app, ["watch"])
    assert done.exit_code == 0, done.output
    assert "2 weeks of version 1: drift of" in done.output
    assert "watch: 2026-W10: 40 pictures, confidence" in done.output
    assert "people changed 50% (9% to 91%) of 2 captions, drift of" in done.output
    assert "spaceship 0% -> 100%" in done.output
    report = read_json(Path("data/watch/report.json"))
    assert [week["week"] for week in report["weeks"]] == ["2026-W09", "2026-W10"]
    assert "words" in report["weeks"][0]["alarms"]
    tag = registry.tags(runs.client(), "toy", 1)["watch.last"]
    assert "drift of" in tag
    assert tag.endswith("; people changed 50% (9% to 91%) of 2 captions in 2026-W10")
    assert [(one["week"], one["judged"]) for one in report["edit_rates"]] == [("2026-W10", 2)]
    shutil.rmtree("data/dataset/train")
    assert CliRunner().invoke(cli.app, ["watch"]).output.splitlines()[-1] == done.output.splitlines()[-1]
    assert read_json(Path("data/watch/report.json")) == report


def test_the_data_set_is_captioned_in_the_way_of_the_service(recorded: Path) -> None:
    """Otherwise the words of a prompt, which the service says each time, would be a drift."""
    for prompt in ("a photo of", "look:"):
        set_params(recorded, {"evaluate.generation.prompt": prompt})
        record()
        assert CliRunner().invoke(cli.app, ["watch"]).exit_code == 0
    found = [read_week(file) for file in Path(".work/watch").rglob("reference.jsonl")]
    starts = [{one.caption.partition(" ")[0] for one in reference} for reference in found]
    assert sorted(starts, key=str) == [{"a"}, {"look:"}]


@pytest.mark.parametrize("change", ["generation", "weights", "a line without a key"])
def test_weeks_of_other_settings_or_weights_are_not_compared(recorded: Path, change: str) -> None:
    if change == "generation":
        set_params(recorded, {"evaluate.generation.beams": 4})
    elif change == "weights":  # a new registry has given the number to another model
        registry.note(runs.client(), "toy", 1, {registry.MODEL_SHA256: "f" * 64})
    else:
        for file in Path("data/watch").iterdir():
            file.write_text(re.sub(', "made_by": "[0-9a-f]*"', "", file.read_text()))
    done = CliRunner().invoke(cli.app, ["watch"])
    assert done.exit_code == 78
    assert "no complete week was captioned by version 1 with evaluate.generation" in done.output
    assert not Path("data/watch/report.json").exists()


def test_without_a_prefect_server_the_report_is_written_and_a_line_says_what_is_missing(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    done = CliRunner().invoke(cli.app, ["watch"])
    assert done.exit_code == 0, done.output
    assert Path("data/watch/report.json").is_file()
    said = capfd.readouterr()  # of the process that would send it
    assert "no Prefect server is at hand, so the drift of 2026-W" in said.out
    assert said.err == ""


@pytest.mark.slow
@pytest.mark.real
def test_git_demo_sees_no_drift_in_twenty_weeks_of_drawings_and_photographs_at_once(captioner: Captioner) -> None:
    """At most one alarm in 20 weeks of the same kind, and one within 2 weeks of photographs, with real features."""
    rng, grain = random.Random(11), np.random.default_rng(11)

    def week() -> list[Seen]:
        return captioned(captioner, [draw(random_scene(rng), grain) for _ in range(40)])

    weeks = {f"2026-W{k:02}": week() for k in range(1, 21)}
    reference = captioned(captioner, [draw(random_scene(rng), grain) for _ in range(150)])
    assert len(alarms(looks(weeks, reference))) <= 1
    with zipfile.ZipFile(SHARED / "flickr8k_500" / "Images.zip") as photos:
        names = [name for name in photos.namelist() if name.endswith(".jpg")][:80]
        images = [decode(photos.read(name), 10**8) for name in names]
    weeks |= {"2026-W21": captioned(captioner, images[:40]), "2026-W22": captioned(captioner, images[40:])}
    found = looks(weeks, reference)
    print(alarms(found), [(look.week, look.p_pictures, look.p_words, look.threshold) for look in found])
    assert "pictures" in dict(alarms(found))["2026-W21"]


def captioned(captioner: Captioner, images: list[Image.Image]) -> list[Seen]:
    """What the recorder keeps of pictures."""
    prepared = [captioner.prepare(image) for image in images]
    features: list[torch.Tensor] = []
    said = captioner.scored(
        prepared, [0] * len(prepared), count=1, beams=1, sampling=False, on_features=features.append
    )
    return [
        Seen(hash_of(picture), "toy", 1, texts[0].text, texts[0].score, row)
        for picture, texts, row in zip(prepared, said, features[0].numpy(), strict=True)
    ]
