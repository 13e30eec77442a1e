"""What is new, fetched and put back, by the commands that ask DVC; no flow and no server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.steps.check_updates import DONE
from flows.workspace import clone
from pipeline.runtime.atomic_files import read_json, write_json
from pipeline.serving.corrections import FOLDER, Corrections
from tests.conftest import jpeg, run, set_params
from tests.flows.test_retrain import Web
from tests.flows.toy import git


@pytest.fixture
def entered(toy_workspace: Path) -> Iterator[Path]:
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        yield toy_workspace


RESULT = Path(".work/result.json")


def command(toy_workspace: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    module = [sys.executable, "-P", "-m", f"flows.steps.{name}"]
    given = {"PYTHONPATH": str(toy_workspace), "IMAGE_CAPTIONING_RESULT": str(RESULT)}
    return run(Path(), *module, "--workspace", str(toy_workspace), *words, **given)


def check_updates(toy_workspace: Path) -> str:
    """Run the step; return its last line."""
    done = command(toy_workspace, "check_updates")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def fetch(toy_workspace: Path, *sources: str) -> subprocess.CompletedProcess[str]:
    return command(toy_workspace, "fetch", "--source", *(f"data/raw/{source}.dvc" for source in sources))


def bring(folder: Path, text: str) -> None:
    """Change captions, a while ago: a folder that was just written to is waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.csv").unlink(missing_ok=True)
    (folder / "captions.csv").write_text(text)
    for path in (folder / "captions.csv", folder):
        os.utime(path, (time.time() - 60,) * 2)


def test_a_new_clone_gets_its_data_from_the_cache_and_what_has_ended_is_nothing_new(entered: Path) -> None:
    assert check_updates(entered) == "check_updates: the last retraining did not finish"
    assert Path("data/raw/mine/captions.csv").read_text() == "a.jpg,a boat\n"
    assert Path("models/finetune/all.csv").is_file()
    write_json(DONE, clone.data_state())
    assert check_updates(entered) == "check_updates: nothing new in mine"
    assert read_json(RESULT) == {"changed": [], "stale": {}, "ended": True}


def test_a_changed_folder_and_a_new_one_are_fetched_and_put_back(entered: Path) -> None:
    before = clone.data_state()
    set_params(entered, {"ingest.sources": ["mine", "new"]})
    git(entered, "commit", "-qam", "a new source")
    bring(entered / "data/raw/mine", "a.jpg,a boat\nb.jpg,a house\n")
    bring(entered / "data/raw/new", "c.jpg,a tree\n")
    clone.synchronize(entered)
    Path("data/raw/new").mkdir()
    Path("data/raw/new/left.csv").write_text("d.jpg,of a fetch that was cut off\n")
    assert check_updates(entered).startswith("check_updates: new: data/raw/mine.dvc; new: data/raw/new.dvc")
    clone.remember()
    fetched = fetch(entered, "mine", "new")
    assert fetched.returncode == 0, fetched.stderr
    assert [path.name for path in Path("data/raw/new").iterdir()] == ["captions.csv"]
    assert Path("data/raw/new/captions.csv").read_text() == "c.jpg,a tree\n"
    assert Path("data/raw/mine/captions.csv").read_text().count("\n") == 2
    assert "new:" not in check_updates(entered)
    assert not (entered / "data/raw/new.dvc").exists()

    assert command(entered, "fetch", "--undo").returncode == 0
    assert clone.data_state() == before
    assert Path("data/raw/mine/captions.csv").read_text() == "a.jpg,a boat\n"


def test_a_source_that_is_nowhere_is_told_in_one_line(entered: Path) -> None:
    set_params(entered, {"ingest.sources": ["mine", "lost"]})
    git(entered, "commit", "-qam", "a lost source")
    clone.synchronize(entered)
    done = command(entered, "check_updates")
    assert done.returncode == 65
    assert "data/raw/lost: not found; put the archive there, or remove lost from ingest.sources" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_link_to_nothing_is_told_in_one_line_and_changes_nothing(entered: Path) -> None:
    before = clone.data_state()
    bring(entered / "data/raw/mine", "a.jpg,a boat\nb.jpg,a house\n")
    assert check_updates(entered).startswith("check_updates: new: data/raw/mine.dvc")
    (entered / "data/raw/mine/b.jpg").symlink_to("nowhere.jpg")
    for done in (command(entered, "check_updates"), fetch(entered, "mine")):
        assert done.returncode == 75
        assert done.stderr.count("\n") == 1, done.stderr
        assert "data/raw/mine/b.jpg: vanished while " in done.stderr
        assert "remove that link" in done.stderr
    assert clone.data_state() == before


def test_a_web_source_is_asked_and_one_that_is_gone_may_come_back(toy_workspace: Path, tmp_path: Path) -> None:
    web = Web(tmp_path / "web")
    web.put("w.jpg,a boat\n")
    (toy_workspace / "data/raw/feed").mkdir()
    set_params(toy_workspace, {"ingest.sources": ["mine", "feed"]})
    assert run(toy_workspace, "dvc", "import-url", "-q", web.address, "data/raw/feed/captions.csv").returncode == 0
    git(toy_workspace, "add", "-A")
    git(toy_workspace, "commit", "-qm", "a feed")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        assert "new:" not in check_updates(toy_workspace)
        web.put("w.jpg,a boat\nx.jpg,a tree\n")
        assert "new: data/raw/feed/captions.csv.dvc" in check_updates(toy_workspace)
        web.down()
        for done in (command(toy_workspace, "check_updates"), fetch(toy_workspace, "feed/captions.csv")):
            assert done.returncode == 75
            assert done.stderr.count("\n") == 1, done.stderr
            assert f"{web.address} " in done.stderr
        web.up()
        assert fetch(toy_workspace, "feed/captions.csv").returncode == 0
        assert Path("data/raw/feed/captions.csv").read_text().count("\n") == 2
    web.down()


def test_new_corrections_are_a_changed_source(entered: Path) -> None:
    set_params(entered, {"ingest.sources": ["mine", "corrections"]})
    git(entered, "commit", "-qam", "train on corrections too")
    corrections = Corrections(entered / FOLDER, entered / ".work/corrections.lock")
    for caption in ("a red page", "another caption"):
        corrections.save("ann", "add", jpeg(), caption=caption)
        clone.synchronize(entered)
        assert check_updates(entered).startswith("check_updates: new: data/raw/corrections.dvc")
        fetched = fetch(entered, "corrections")
        assert fetched.returncode == 0, fetched.stderr
        assert caption in (Path(FOLDER) / "corrections.jsonl").read_text()
        assert "new:" not in check_updates(entered)
