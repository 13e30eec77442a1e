"""The whole loop, as a user runs it: in a copy of the repository, in a path with a space, by `dvc repro`."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline.commands.caption import caption_photos
from pipeline.config import params
from pipeline.data.dataset import PictureReader, read_examples
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.tracking import runs
from pipeline.tracking.captioners import load_captioner
from tests.conftest import environment, jpeg, run, set_params

OUTPUTS = [Path(name) for name in ("data/ingest", "data/dataset", "models/finetune", "reports")]
NOTHING = "Data and pipelines are up to date."


def outputs(folder: Path) -> str:
    return sha256_of(*(folder / name for name in OUTPUTS))


def store_in(file: Path) -> runs.mlflow.MlflowClient:
    """A client of an MLflow store's file, which asks it anew each time."""
    assert file.is_file()
    return runs.mlflow.MlflowClient(f"sqlite:///{file}")


def registered(folder: Path) -> list[Any]:
    """The versions in the registry of a workspace."""
    return list(store_in(folder / "mlflow.db").search_model_versions("name='image-captioning'"))


def versions(folder: Path) -> list[str]:
    return sorted(str(version.version) for version in registered(folder))


def test_every_output_is_made_and_git_sees_nothing_but_the_lock_and_the_users_own_changes(loop: Path) -> None:
    for output in OUTPUTS:
        assert (loop / output).is_dir()
    status = run(loop, "git", "status", "--porcelain").stdout.splitlines()
    changed = {line[3:].strip('"') for line in status}
    assert changed <= {"dvc.lock", "params.yaml", "data/raw/small.dvc", "data/raw/sample.dvc", "data/raw/.gitignore"}


def test_running_it_again_runs_nothing(loop: Path) -> None:
    done = run(loop, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert done.stdout.strip().endswith(NOTHING)


def test_tests_and_tools_make_nothing_stale(loop: Path) -> None:
    """Their caches and compiled files lie beside the code, and must be no part of any stage."""
    run(loop, sys.executable, "-m", "compileall", "-q", "pipeline")
    run(loop, sys.executable, "-m", "ruff", "check", ".")
    assert list((loop / "pipeline").rglob("__pycache__"))
    assert run(loop, "dvc", "status").stdout.strip() == NOTHING


@pytest.mark.parametrize(
    "module",
    [
        *("config/params.py", "runtime/progress.py", "runtime/launch.py", "runtime/state_store.py", "tracking/runs.py"),
        *("tracking/gate.py", "commands/caption_files.py"),
    ],
)
def test_a_comment_in_code_that_decides_nothing_makes_no_stage_stale(loop: Path, module: str) -> None:
    file = loop / "pipeline" / module
    before = file.read_text()
    file.write_text(before + "\n# a comment\n")
    assert run(loop, "dvc", "status").stdout.strip() == NOTHING
    file.write_text(before)


def test_a_runtime_param_makes_no_stage_stale(loop: Path) -> None:
    before = (loop / "params.yaml").read_text()
    changes = {
        "state_minutes": 1,
        "feature_cache_gb": 1,
        "caption_batch_size": 3,
        "decode_threads": 2,
        "engine": "ray",
        "ray_workers": 2,
        "launch.port": 29501,
    }
    set_params(loop, {f"runtime.{key}": value for key, value in changes.items()})
    assert run(loop, "dvc", "status").stdout.strip() == NOTHING
    (loop / "params.yaml").write_text(before)


def test_a_param_of_evaluate_trains_nothing_again(loop: Path) -> None:
    before = versions(loop)
    set_params(loop, {"evaluate.generation.beams": 2})
    done = run(loop, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    ran = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
    assert ran == ["evaluate", "register"]
    assert versions(loop) == before


def test_dvc_shows_metrics_params_and_plots(loop: Path) -> None:
    metrics = json.loads(run(loop, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {name: set(found["data"]) for name, found in metrics.items()} == {
        "reports/build.metrics.json": {
            *("train_pictures", "validation_pictures", "test_pictures", "captions", "set_aside"),
        },
        "reports/finetune.metrics.json": {"best_epoch", "train_loss", "validation_loss", "validation_CIDEr-D"},
        "reports/evaluate.metrics.json": {
            *("CIDEr-D", "CIDEr-D_low", "CIDEr-D_high", "BLEU-4", "ROUGE-L", "nearest_picture", "most_frequent"),
        },
    }
    assert set(read_json(loop / "reports/evaluate.json")["model"]) == {
        *(f"BLEU-{n}" for n in (1, 2, 3, 4)),
        *("ROUGE-L", "CIDEr-D", "CIDEr", "distinct-1", "distinct-2", "distinct_captions", "words"),
        *("emoji_recall", "hashtag_recall", "content_recall", "unknown_words", "copied", "unfinished", "loops"),
        *("named", "intervals_95"),
    }
    assert read_json(loop / "reports/ingest/small.json")["files"]["pictures_kept"] > 80
    assert "finetune.epochs" in run(loop, "dvc", "params", "diff", "--all").stdout
    shown = run(loop, "dvc", "plots", "show", "-o", "plots page")
    assert shown.returncode == 0, shown.stderr
    page = (loop / "plots page" / "index.html").read_text()
    assert "train_loss" in page
    assert "CIDEr-D" in page
    assert "contact_sheet.png" in page
    shutil.rmtree(loop / "plots page")


def test_captions_stand_in_a_file_from_which_the_scores_follow(loop: Path) -> None:
    code = (
        "import json\nfrom pipeline.evaluation.metrics.scoring import corpus_scores\n"
        "from pipeline.evaluation.ptb.tokens import ptb_tokenize\n"
        "lines = [json.loads(l) for l in open('reports/evaluate/captions.jsonl')]\n"
        "print(json.dumps(corpus_scores([ptb_tokenize(l['captions']['model']) for l in lines],"
        " [[ptb_tokenize(r) for r in l['references']] for l in lines])))"
    )
    again = json.loads(run(loop, sys.executable, "-c", code).stdout)
    written = read_json(loop / "reports/evaluate.json")["model"]
    assert again == {name: written[name] for name in again}
    assert list(again) == list(written["intervals_95"])


def test_the_version_leads_back_to_data_params_and_code(loop: Path) -> None:
    tags = registered(loop)[0].tags
    lock = YAML(typ="safe").load(loop / "dvc.lock")["stages"]
    raw = next(d for d in lock["ingest@small"]["deps"] if d["path"] == "data/raw/small")
    assert tags["dvc.raw.small"] == raw["md5"]
    assert raw["md5"] in (loop / "data/raw/small.dvc").read_text()
    assert tags["dvc.dataset"] == next(o for o in lock["build"]["outs"] if o["path"] == "data/dataset")["md5"]
    assert tags["git.commit"] == run(loop, "git", "rev-parse", "HEAD").stdout.strip()
    assert [tag for tag in tags if tag.startswith("dvc.raw.")] == ["dvc.raw.small"]
    assert json.loads(tags["params"])["finetune.scratch.heads"] == 2
    assert tags["git.dirty"] == "true"  # params.yaml was changed
    assert tags["model_sha256"] == read_json(loop / "reports/finetune.json")["model_sha256"]


def test_the_run_has_curve_metrics_table_gallery_params_and_lock(loop: Path) -> None:
    store = store_in(loop / "mlflow.db")
    found = store.search_runs([runs.experiment(store, "image-captioning")])[0]
    assert found.info.status == "FINISHED"
    assert "restored" not in found.data.tags
    assert found.data.params["ingest.image_size"] == "256"
    evaluated = read_json(loop / "reports/evaluate.json")
    assert found.data.metrics["test/CIDEr-D"] == evaluated["model"]["CIDEr-D"]
    assert found.data.metrics["test/CIDEr-D/nearest_picture"] == evaluated["nearest_picture"]["CIDEr-D"]
    assert found.data.metrics["epoch/validation_loss"] > 0
    files = {file.path for file in store.list_artifacts(found.info.run_id)}
    assert {"params.yaml", "dvc.lock", "gallery.html", "evaluate.json", "captions.html"} <= files
    assert len(found.data.metrics) <= 30


def test_the_version_says_how_the_model_compares_and_shows_samples(loop: Path) -> None:
    version = registered(loop)[0]
    assert "worse than the naive answers" in version.tags["test_verdict"]
    assert "**Worse than the naive answers (-" in version.description
    assert "Not decided yet" in version.description
    (card,) = (loop / "mlartifacts").rglob("MODEL_CARD.md")
    captions = [json.loads(line) for line in (loop / "reports/evaluate/captions.jsonl").read_text().splitlines()]
    for number in range(1, 7):
        assert f"| ![{number}](samples/{number}.jpg) |" in card.read_text()
        with Image.open(card.parent / f"samples/{number}.jpg") as picture:
            assert picture.format == "JPEG"
        assert f"`samples/{number}.jpg`" in version.description
    assert captions[0]["references"][0] in card.read_text()


def test_registering_again_makes_no_second_version(loop: Path) -> None:
    before, files = versions(loop), outputs(loop)
    done = run(loop, sys.executable, "-m", "pipeline.register")
    assert done.returncode == 0, done.stderr
    assert "was already in the registry" in done.stdout
    assert versions(loop) == before
    assert outputs(loop) == files


def test_a_version_tells_whether_it_was_trained_on_a_picture_or_one_like_it(loop: Path, tmp_path: Path) -> None:
    train, test = (read_examples(loop / "data/dataset" / split)[0] for split in ("train", "test"))
    raw = {name: zipfile.ZipFile(loop / "data/raw/small/images.zip").read(name) for name in scenes(loop)}
    (original,) = (data for data in raw.values() if hashlib.sha256(data).hexdigest() == train.sha256)
    (tmp_path / "original.jpg").write_bytes(original)
    with Image.open(io.BytesIO(original)) as image:
        image.resize((100, 100)).save(tmp_path / "smaller.jpg")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "never seen.jpg")
    names = [f"{tmp_path}/original.jpg", f"{tmp_path}/smaller.jpg", f"{tmp_path}/never seen.jpg", test.sha256]
    done = run(loop, sys.executable, "-m", "pipeline.cli", "trained-on", *names)
    assert done.returncode == 0, done.stderr
    exactly, nearly, never, tested, last = done.stdout.splitlines()
    assert "trained on it: versions 1" in exactly
    assert "trained on it: none; trained on a near-duplicate: versions 1" in nearly
    for line in (never, tested):
        assert "trained on it: none; trained on a near-duplicate: none" in line
    assert "versions of image-captioning" in last
    assert last.startswith("trained-on: checked ")
    missing = run(loop, sys.executable, "-m", "pipeline.cli", "trained-on", "lost.jpg")
    assert missing.returncode == 65
    assert "lost.jpg: No such file" in missing.stderr


@pytest.mark.slow
def test_promote_says_with_the_registered_checkpoint_what_evaluate_said_and_says_it_once(loop: Path) -> None:
    sha256 = read_json(loop / "reports/register.json")["model_sha256"]
    (number,) = (v.version for v in registered(loop) if v.tags["model_sha256"] == sha256)
    command = (sys.executable, "-m", "pipeline.cli", "promote", "--dry-run", "--challenger", f"{number}")
    done = run(loop, *command)
    assert done.returncode == 0, done.stderr
    (kept,) = (loop / ".work/captions").glob("*.json")
    evaluated = (loop / "reports/evaluate/captions.jsonl").read_text().splitlines()
    assert read_json(kept) == [json.loads(line)["captions"]["model"] for line in evaluated]
    kept.write_text(json.dumps([f"caption {k}" for k in range(len(evaluated))]))
    again = run(loop, *command)
    assert "distinct_captions 1.000" in again.stdout
    # This tiny model is worse than the naive answers.
    assert f"version {number} is not promoted; the champion is none: worse than the naive answers (-" in again.stdout
    forced = run(loop, *command, "--force")
    assert f"version {number} would be the first champion: forced with --force; worse than" in forced.stdout
    kept.unlink()


def scenes(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "data/raw/small/images.zip") as archive:
        return [name for name in archive.namelist() if name.startswith("scene-0") and "(" not in name]


def test_an_old_version_keeps_where_it_came_from(loop: Path) -> None:
    """Another commit and other params of today say nothing about a model of yesterday."""
    before = registered(loop)[0].tags
    good = (loop / "params.yaml").read_text()
    set_params(loop, {"finetune.epochs": 77})
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    run(loop, *git, "commit", "-qam", "another commit")
    assert run(loop, sys.executable, "-m", "pipeline.register").returncode == 0
    (loop / "params.yaml").write_text(good)
    assert registered(loop)[0].tags == before


@pytest.mark.parametrize("file", ["models/finetune/model.safetensors", "data/dataset/train/captions.jsonl"])
def test_a_model_that_is_not_what_it_says_is_not_registered(loop: Path, file: str) -> None:
    good = (loop / file).read_bytes()
    (loop / file).unlink()  # DVC may have linked it to its cache
    (loop / file).write_bytes(good[:-1] + b" ")
    done = run(loop, sys.executable, "-m", "pipeline.register")
    (loop / file).write_bytes(good)
    assert done.returncode == 65
    assert "run `dvc repro`" in done.stderr


@pytest.mark.slow
def test_an_emptied_registry_is_filled_again_from_the_files(loop: Path, tmp_path: Path) -> None:
    empty = f"sqlite:///{tmp_path / 'other.db'}"
    done = run(loop, sys.executable, "-m", "pipeline.register", MLFLOW_TRACKING_URI=empty)
    assert done.returncode == 0, done.stderr
    assert "models:/image-captioning/1 is new in the registry" in done.stdout
    store = store_in(tmp_path / "other.db")
    made = store.search_runs([runs.experiment(store, "image-captioning")])[0]
    assert made.data.tags["restored"] == "true"
    assert len(store.get_metric_history(made.info.run_id, "epoch/train_loss")) == 2
    assert run(loop, "dvc", "status").stdout.strip() == NOTHING


def test_ones_own_photo_is_captioned_by_the_newest_and_by_a_named_model(
    loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "my photo.jpg"
    photo.write_bytes(jpeg("green", (400, 300)))
    newest = run(loop, sys.executable, "-m", "pipeline.cli", "caption", str(photo))
    assert newest.returncode == 0, newest.stderr
    said = {newest.stdout.splitlines()[0]}
    assert "the newest version: there is no champion" in newest.stdout.splitlines()[-1]

    # The command is run above; what its other arguments do is seen without the ten seconds that each start takes.
    monkeypatch.chdir(loop)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def lines(of: Path = photo, **options: Any) -> list[str]:
        print(caption_photos(params.load(), [of], **options))
        return capsys.readouterr().out.splitlines()

    for model in ("models:/image-captioning/1", "models/finetune"):
        said.add(lines(model=model)[0])
    assert len(said) == 1
    no_utf8 = Path(shutil.copy(photo, tmp_path / os.fsdecode(b"foto\xfc.jpg")))
    assert lines(no_utf8, model="models/finetune")[0].encode().startswith(str(tmp_path).encode())
    several = [line for line in lines(several=4) if line.startswith(str(photo))]
    assert 1 <= len(several) == len(set(several)) <= 4
    assert run(loop, sys.executable, "-m", "pipeline.cli", "caption", "nothing.jpg").returncode == 65
    champion = run(
        loop,
        sys.executable,
        "-m",
        "pipeline.cli",
        "caption",
        str(photo),
        "--model",
        "models:/image-captioning@champion",
    )
    assert champion.returncode == 78
    assert champion.stderr.count("\n") == 1


def test_a_version_chooses_captions_with_its_own_index_like_the_workspace(
    loop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(loop)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    read = params.load()
    decoding = read.evaluate.decoding.model_copy(update={"method": "both", "samples": 8, "temperature": 1.5})
    given = read.model_copy(update={"evaluate": read.evaluate.model_copy(update={"decoding": decoding})})
    examples = read_examples(Path("data/dataset/test"))[:8]
    reader = PictureReader(Path("data/dataset/test"))
    pictures = [Image.open(io.BytesIO(reader.read(example.file_name))).convert("RGB") for example in examples]
    chosen = [
        load_captioner(model, given).caption(pictures) for model in ("models:/image-captioning/1", "models/finetune")
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != load_captioner("models/finetune", read).caption(pictures)

    seen = read_examples(Path("data/dataset/train"))[0].sha256
    without = given.model_copy(update={"ingest": given.ingest.model_copy(update={"exclude": [seen]})})
    index = load_captioner("models:/image-captioning/1", without).neighbours
    assert index is not None
    assert seen not in index.sha256s
    assert len(index.sha256s) == len(read_examples(Path("data/dataset/train"))) - 1


@pytest.fixture
def served(loop: Path, tmp_path: Path) -> Iterator[Callable[[dict], dict]]:
    """The registered model, served by MLflow in another process outside the repository."""
    port = "5917"
    uri = f"sqlite:///{loop / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/image-captioning/1"]
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--port", port],
        cwd=tmp_path,
        env=environment(MLFLOW_TRACKING_URI=uri, MLFLOW_DISABLE_TELEMETRY="true"),
        start_new_session=True,
    )

    def ask(content: dict) -> dict:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        end = time.monotonic() + 90
        while not ready():
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.3)
        yield ask
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


@pytest.mark.slow
def test_the_model_is_served_outside_the_repository_and_reads_no_file_of_its_host(
    loop: Path, served: Callable[[dict], dict]
) -> None:
    example = read_examples(loop / "data/dataset/test")[0]
    data = base64.b64encode(PictureReader(loop / "data/dataset/test").read(example.file_name)).decode()
    pictures = [data, f"data:image/jpeg;base64,{data}", "/etc/passwd", "http://127.0.0.1/x.jpg", "bm8gcGljdHVyZQ=="]
    rows = served({"dataframe_split": {"columns": ["image"], "data": [[p] for p in pictures]}})["predictions"]
    evaluated = json.loads((loop / "reports/evaluate/captions.jsonl").read_text().splitlines()[0])
    assert rows[0] == rows[1]
    assert rows[0]["error"] == ""
    assert isinstance(evaluated["captions"]["model"], str)
    for row in rows[2:]:
        assert row["caption"] == ""
        assert row["error"]
        assert "root:" not in json.dumps(row)
    assert "base64" in rows[2]["error"]


def test_bad_data_stops_the_loop_with_65_and_nothing_good_is_lost(loop: Path) -> None:
    before, seen = outputs(loop), versions(loop)
    table = loop / "data/raw/small/captions.csv"
    good = table.read_bytes()
    table.unlink()  # DVC may have linked it to its cache
    table.write_text("picture,words\n")
    done = run(loop, "dvc", "repro")
    assert done.returncode != 0
    assert "exited with 65" in done.stderr
    assert "captions.csv: row 1: found the columns picture, words" in done.stderr
    assert outputs(loop) == before
    table.write_bytes(good)
    settled = run(loop, "dvc", "repro")
    assert settled.returncode == 0, settled.stderr
    assert outputs(loop) == before
    assert versions(loop) == seen


def test_an_unknown_key_stops_with_78(loop: Path) -> None:
    good = (loop / "params.yaml").read_text()
    set_params(loop, {"build.tests": 0.5})
    done = run(loop, "dvc", "repro")
    (loop / "params.yaml").write_text(good)
    assert "exited with 78" in done.stderr
    assert "params.yaml: build.tests: unknown key" in done.stderr


def test_a_killed_dvc_takes_its_stage_along(loop: Path) -> None:
    before = outputs(loop)
    good = (loop / "params.yaml").read_text()
    set_params(loop, {"finetune.epochs": 5000})
    with subprocess.Popen(["dvc", "repro", "finetune"], cwd=loop, env=environment()) as dvc:
        family: list[psutil.Process] = []
        end = time.monotonic() + 60
        while not any("pipeline.finetune" in " ".join(p.cmdline()) for p in family):
            assert time.monotonic() < end
            time.sleep(0.2)
            family = psutil.Process(dvc.pid).children(recursive=True)
        time.sleep(6)  # into the training
        dvc.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    (loop / "params.yaml").write_text(good)
    assert outputs(loop) == before


def test_an_empty_workspace_says_what_to_bring(clone: Callable[[], Path]) -> None:
    folder = clone()
    shutil.rmtree(folder / "data" / "raw" / "sample", ignore_errors=True)
    done = run(folder, sys.executable, "-m", "pipeline.ingest", "sample")
    assert done.returncode == 65
    assert "data/raw/sample: not found; put the .zip of pictures and the .csv" in done.stderr
    set_params(folder, {"ingest.sources": ["mine"]})
    repro = run(folder, "dvc", "repro")
    assert repro.returncode != 0
    assert "data/raw/mine" in repro.stderr
