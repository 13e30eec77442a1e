"""A backup restores the same champion, and a restore overwrites nothing and notices every damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import psutil
import pytest

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.deployment import backup, repository
from pipeline.models.weights import weights_hash
from pipeline.runtime import process_identity, workspace_lock
from pipeline.tracking import downloads, registry, runs
from tests.conftest import ROOT, environment
from tests.tracking.test_downloads import MODEL, registered

CAPTIONS = Path("data/raw/corrections/corrections.jsonl")
OBJECT = Path(".dvc/cache/files/md5/ab/cdef")


def git(*words: str) -> str:
    who = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["git", *words], env=environment(**who), check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def deployment(workspace: Path, mlflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a champion, an older version, data of DVC, a correction and an uncommitted change."""
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(mlflow_db, workspace)
    for name in ("a", "b"):
        number = registered(tmp_path / name)
    registry.make_champion(runs.client(), MODEL, 1)
    assert number == 2
    for path, text in ((CAPTIONS, '{"caption": "a dog"}\n'), (OBJECT, "a picture")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path(".gitignore").write_text(".work\nmlflow.db\nmlartifacts\n.dvc/cache\ndata\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "mine")
    with paths.PARAMS.open("a") as file:
        file.write("# changed\n")
    paths.DVC_LOCK.write_text("schema: '2.0'\n")
    return workspace


def emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new workspace elsewhere, which becomes the current folder."""
    folder = tmp_path / "elsewhere" / "new one"
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(None)
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "new")
    return folder


def test_a_restored_backup_has_the_same_champion_data_corrections_and_repository(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_hash(downloads.checkpoint_of(f"models:/{MODEL}@champion", 1))
    other = weights_hash(downloads.checkpoint_of(f"models:/{MODEL}/2", 1))
    backup.back_up(str(tmp_path / "monday"))
    assert git("branch", "--list", repository.BRANCH) == ""
    assert git("status", "--porcelain").split() == ["M", "params.yaml", "??", "dvc.lock"]
    deployment.rename(tmp_path / "gone")
    folder = emptied(tmp_path, monkeypatch)
    assert f"restored/{repository.BRANCH}" in backup.restore(str(tmp_path / "monday"))
    champion = downloads.checkpoint_of(f"models:/{MODEL}@champion", 1)
    assert champion.is_relative_to(folder)
    assert weights_hash(champion) == before
    assert weights_hash(downloads.checkpoint_of(f"models:/{MODEL}/2", 1)) == other != before
    assert registry.champion(runs.client(), MODEL) == 1
    assert registry.versions(runs.client(), MODEL) == [1, 2]
    assert CAPTIONS.read_text() == '{"caption": "a dog"}\n'
    assert OBJECT.read_text() == "a picture"
    assert git("show", f"restored/{repository.BRANCH}:params.yaml").endswith("# changed")
    assert git("show", f"restored/{repository.BRANCH}:dvc.lock") == "schema: '2.0'"
    assert git("log", "-1", "--format=%s", "restored/main") == "mine"


def test_a_damaged_backup_is_found_before_anything_is_written(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.back_up(str(tmp_path / "monday"))
    files = sorted(path for path in (tmp_path / "monday").rglob("*") if path.name in ("model.safetensors", "mlflow.db"))
    assert len(files) == 3
    folder = emptied(tmp_path, monkeypatch)
    there = sorted(folder.rglob("*"))
    for file in files:
        kept = file.read_bytes()
        for damaged in (kept[:-1] + bytes([kept[-1] ^ 1]), kept + b"?", kept[:-1], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(DataError, match="is missing" if damaged is None else "has changed since"):
                backup.restore(str(tmp_path / "monday"))
        file.write_bytes(kept)
    assert sorted(folder.rglob("*")) == there
    backup.restore(str(tmp_path / "monday"))


def test_a_workspace_that_was_cloned_from_a_backup_stays_on_its_branch(deployment: Path, tmp_path: Path) -> None:
    """Without a git repository, `restore` says to clone the backup's branch; the next backup has the same branch."""
    git("checkout", "-q", "-b", repository.BRANCH)
    before = git("rev-parse", "HEAD"), git("status", "--porcelain")
    backup.back_up(str(tmp_path / "monday"))
    assert (git("rev-parse", "HEAD"), git("status", "--porcelain")) == before
    assert git("bundle", "list-heads", str(tmp_path / "monday" / "workspace.bundle")).count(repository.BRANCH) == 1


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "artifacts/../../outside", "artifacts//etc/passwd", "params.yaml", ".git/hooks/x"],
)
def test_a_manifest_that_names_files_elsewhere_is_refused(
    name: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil").mkdir()
    facts = {"sha256": "0" * 64, "bytes": 0}
    (tmp_path / "evil" / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: facts}}))
    with pytest.raises(DataError, match="is no file of a backup"):
        backup.restore(str(tmp_path / "evil"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": 1}}'])
def test_a_damaged_manifest_is_one_line(content: str, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="use another backup|use the release"):
        backup.restore(str(tmp_path / "x"))


def test_a_restore_overwrites_nothing(deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.back_up(str(tmp_path / "monday"))
    before = {path: path.read_bytes() for path in deployment.rglob("*") if path.is_file() and ".work" not in path.parts}
    with pytest.raises(ConfigError, match=r"mlflow.db: exists already; restore into an empty deployment"):
        backup.restore(str(tmp_path / "monday"))
    emptied(tmp_path, monkeypatch)
    CAPTIONS.parent.mkdir(parents=True)
    (CAPTIONS.parent / "another.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="has other files already, like another.jsonl"):
        backup.restore(str(tmp_path / "monday"))
    assert {path.name for path in CAPTIONS.parent.iterdir()} == {"another.jsonl"}
    after = {path: path.read_bytes() for path in deployment.rglob("*") if path.is_file() and ".work" not in path.parts}
    assert after == before


def test_a_backup_overwrites_nothing_and_leaves_nothing_when_it_fails(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="exists already; name a new folder"):
        backup.back_up(str(tmp_path / "full"))
    monkeypatch.setattr(repository, "bundle", lambda file: (_ for _ in ()).throw(TemporaryError("no")))
    with pytest.raises(TemporaryError):
        backup.back_up(str(tmp_path / "monday"))
    assert not [path.name for path in tmp_path.iterdir() if "monday" in path.name]


def test_a_restore_that_was_cut_off_can_be_repeated(
    deployment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.back_up(str(tmp_path / "monday"))
    emptied(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_place_sqlite", lambda *paths: (_ for _ in ()).throw(TemporaryError("killed")))
        with pytest.raises(TemporaryError):
            backup.restore(str(tmp_path / "monday"))
    backup.restore(str(tmp_path / "monday"))
    assert registry.champion(runs.client(), MODEL) == 1


def test_a_backup_waits_for_no_training_but_says_that_one_runs(
    workspace: Path, mlflow_db: Path, tmp_path: Path
) -> None:
    shutil.copy(mlflow_db, workspace)
    parent = process_identity.identity(psutil.Process(os.getppid()))
    workspace_lock.take("`dvc repro`", parent)
    with pytest.raises(TemporaryError, match="`dvc repro`"):
        backup.back_up(str(tmp_path / "monday"))


def test_a_server_without_the_addresses_of_its_data_is_a_clear_message(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION"):
        backup.back_up(str(tmp_path / "monday"))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg2://a:secret@127.0.0.1:1/mlflow")
    with pytest.raises(ConfigError, match="MLFLOW_ARTIFACTS_DESTINATION: not set") as found:
        backup.back_up(str(tmp_path / "monday"))
    assert "secret" not in str(found.value)
