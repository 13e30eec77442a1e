"""The clone and what git does in it; no flow and no server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.workspace import clone
from pipeline.config.errors import ConfigError, TemporaryError
from tests.conftest import environment, set_params
from tests.flows.toy import git


@pytest.fixture
def entered(toy_workspace: Path) -> Iterator[Path]:
    """The workspace's clone, up to date and the current folder."""
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        yield toy_workspace


def commit(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "more")


def test_the_clone_has_the_last_commit_and_mlflow_and_the_cache_of_the_workspace(
    toy_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (toy_workspace / "params.yaml").write_text("being: edited\n")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        assert Path.cwd() == toy_workspace / ".work/clone"
        assert "ingest:" in Path("params.yaml").read_text()
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{toy_workspace / 'mlflow.db'}"
        shown = subprocess.run(
            ["dvc", "cache", "dir"], env=environment(), capture_output=True, text=True, check=True
        ).stdout
        assert Path(shown.strip()) == toy_workspace / ".dvc/cache"
        assert Path(".dvc/config.local").stat().st_mode & 0o077 == 0
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.parametrize(
    ("given", "used"),
    [("sqlite:///store/x.db", "sqlite:///{}/store/x.db"), ("sqlite:////a/x.db",) * 2, ("http://h:5000",) * 2],
)
def test_an_address_of_mlflow_means_in_the_clone_what_it_means_in_the_workspace(
    toy_workspace: Path, monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with clone.entered(toy_workspace):
        assert os.environ["MLFLOW_TRACKING_URI"] == used.format(toy_workspace)
    assert os.environ["MLFLOW_TRACKING_URI"] == given


def test_dvcs_remotes_of_this_machine_come_along_with_their_paths(toy_workspace: Path) -> None:
    git(toy_workspace, "status")
    for words in (["-q", "-d", "store", "../shared store"], ["-q", "--local", "mine", "s3://bucket/x"]):
        subprocess.run(["dvc", "remote", "add", *words], cwd=toy_workspace, env=environment(), check=True)
    git(toy_workspace, "commit", "-qam", "a remote")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        listed = subprocess.run(
            ["dvc", "remote", "list"], env=environment(), capture_output=True, text=True, check=True
        ).stdout
    listed = listed.replace("\n", "")  # rich breaks long lines
    assert str(toy_workspace.parent / "shared store") in listed
    assert "s3://bucket/x" in listed


def test_data_go_on_in_the_clone_and_code_and_params_come_from_the_workspace(entered: Path) -> None:
    Path("data/raw/mine.dvc").write_text("of: the clone\n")
    Path("dvc.lock").write_text("of: the clone\n")
    Path("data/raw/new.dvc").write_text("of: the clone\n")
    Path("pipeline/works/ingest.py").write_text("nobody may write here\n")
    commit(entered, **{"pipeline/works/ingest_py": "# of the workspace\n"})
    clone.synchronize(entered)
    for name in ("data/raw/mine.dvc", "dvc.lock", "data/raw/new.dvc"):
        assert Path(name).read_text() == "of: the clone\n"
    assert Path("pipeline/works/ingest.py").read_text() == "# of the workspace\n"


def test_where_the_workspace_has_committed_other_data_those_count(entered: Path) -> None:
    Path("data/raw/mine.dvc").write_text("of: the clone\n")
    clone.remember()
    assert clone.is_unfinished(entered)
    Path("data/raw/mine.dvc").write_text("fetched: since\n")
    Path("dvc.lock").write_text("of: the clone\n")
    commit(entered, **{"data/raw/mine_dvc": "of: the workspace\n"})
    clone.synchronize(entered)
    assert Path("data/raw/mine.dvc").read_text() == "of: the workspace\n"
    assert Path("dvc.lock").read_text() == "of: the clone\n"
    clone.go_back()
    assert Path("data/raw/mine.dvc").read_text() == "of: the workspace\n"
    assert Path("dvc.lock").read_text() != "of: the clone\n"

    git(entered, "rm", "-q", "data/raw/mine.dvc")
    git(entered, "commit", "-qm", "no more of it")
    clone.synchronize(entered)
    assert not Path("data/raw/mine.dvc").exists()


def test_what_must_not_be_used_and_a_checkpoint_of_the_workspace_come_along(toy_workspace: Path) -> None:
    (toy_workspace / "data/excluded").mkdir()
    (toy_workspace / "data/excluded/photo.jpg").write_text("x")
    (toy_workspace / "models/mine").mkdir(parents=True)
    set_params(toy_workspace, {"finetune.checkpoint": "models/mine"})
    commit(toy_workspace)
    assert "data/excluded/photo.jpg" in git(toy_workspace, "ls-files")  # the toy workspace ignores less than ours
    git(toy_workspace, "rm", "-rq", "--cached", "data/excluded")
    git(toy_workspace, "commit", "-qm", "as ours")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        assert Path("data/excluded/photo.jpg").read_text() == "x"
        assert Path("models/mine").is_dir()
        (toy_workspace / "data/excluded/photo.jpg").rename(toy_workspace / "data/excluded/other.jpg")
        clone.synchronize(toy_workspace)
        assert [path.name for path in Path("data/excluded").iterdir()] == ["other.jpg"]


def test_pictures_to_leave_out_that_can_not_come_along_are_told(toy_workspace: Path) -> None:
    (toy_workspace.parent / "excluded").mkdir()
    set_params(toy_workspace, {"ingest.exclude": ["../excluded"]})
    commit(toy_workspace)
    with clone.entered(toy_workspace), pytest.raises(ConfigError, match=r"\.\./excluded leads out of here"):
        clone.synchronize(toy_workspace)
    assert (toy_workspace.parent / "excluded").exists()


def test_a_commit_touches_neither_what_is_checked_out_nor_the_index(entered: Path) -> None:
    Path("data/raw/mine.dvc").write_text("new\n")
    Path("pipeline/works/ingest.py").write_text("not meant\n")
    status, head = git(Path(), "status", "--porcelain"), git(Path(), "rev-parse", "HEAD")
    there = git(entered, "status", "--porcelain"), git(entered, "rev-parse", "HEAD", "main")
    made, branch = clone.commit("retrain/2026-01-05", "words\n\n* a reason")
    assert branch == "retrain/2026-01-05"
    clone.publish(branch)
    assert (git(Path(), "status", "--porcelain"), git(Path(), "rev-parse", "HEAD")) == (status, head)
    assert (git(entered, "status", "--porcelain"), git(entered, "rev-parse", "HEAD", "main")) == there
    assert git(entered, "diff", "--name-only", "main", branch) == "data/raw/mine.dvc"
    assert git(entered, "log", "-1", "--format=%an %s", branch) == "flows.retrain words"
    assert git(entered, "rev-parse", branch) == made
    assert clone.commit("retrain/2026-01-06", "the same once more") == (made, branch)
    Path("data/raw/mine.dvc").write_text("newer\n")
    assert clone.commit("retrain/2026-01-05", "words")[1] == "retrain/2026-01-05.2"


def test_what_is_committed_already_is_not_committed_again(entered: Path) -> None:
    assert clone.commit("retrain/x", "words") == (git(entered, "rev-parse", "HEAD"), None)
    assert not clone.refs("refs/heads/retrain/*")


def test_a_branch_is_withdrawn_unless_it_went_on_or_is_checked_out(entered: Path) -> None:
    made = {}
    for name in ("a", "b", "c"):
        Path("data/raw/mine.dvc").write_text(f"{name}\n")
        made[name], _ = clone.commit(f"retrain/{name}", name)
        clone.publish(f"retrain/{name}")
    git(entered, "update-ref", "refs/heads/retrain/b", "HEAD")
    git(entered, "checkout", "-q", "-f", "retrain/c")
    for name, commit_ in made.items():
        clone.withdraw(f"refs/heads/retrain/{name}", commit_)
    left = git(entered, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()
    assert left == ["retrain/b", "retrain/c"]


def test_a_lock_that_a_killed_git_left_is_no_obstacle(entered: Path) -> None:
    Path(".git/index.lock").touch()
    clone.synchronize(entered)
    assert not Path(".git/index.lock").exists()


def test_a_clone_that_was_cut_off_is_made_anew(toy_workspace: Path) -> None:
    (toy_workspace / ".work/.clone.partial/.git").mkdir(parents=True)
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        assert Path("params.yaml").is_file()


def test_without_a_commit_there_is_nothing_to_work_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no commit here"), clone.entered(tmp_path):
        pass
    git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match="no commit here"), clone.entered(tmp_path):
        pass
    (tmp_path / "inner").mkdir()
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    with pytest.raises(ConfigError, match="is a folder within the git repository"), clone.entered(tmp_path / "inner"):
        pass


def test_what_git_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="git rev-parse: fatal: not a git repository"):
        clone.git("rev-parse", "--verify", "nothing", folder=tmp_path)


def test_a_retraining_that_begins_after_one_that_was_cut_off_goes_back_to_before_both(entered: Path) -> None:
    good = Path("data/raw/mine.dvc").read_text()
    clone.remember()
    clone.remember()
    assert not clone.refs(f"{clone.ASIDE}*")
    Path("data/raw/mine.dvc").write_text("fetched, and then it was cut off\n")
    clone.remember()
    assert len(clone.refs(f"{clone.ASIDE}*")) == 1  # for flows.steps.delete_old_data
    Path("data/raw/mine.dvc").write_text("fetched, and bad\n")
    clone.go_back()
    assert Path("data/raw/mine.dvc").read_text() == good
    assert not clone.is_unfinished(entered)


def test_accepted_data_are_gone_back_to_until_their_retraining_ends(entered: Path) -> None:
    file = Path("data/raw/mine.dvc")
    clone.remember()
    start = clone.began()
    file.write_text("fetched, and trained on\n")
    clone.accept()
    assert clone.began() == start
    for path in (clone.BEFORE, *clone.BEFORE.rglob("*")):  # as `synchronize` writes what a person committed
        os.utime(path)
    assert clone.began() == start
    clone.remember()
    file.write_text("fetched, and bad\n")
    clone.go_back()
    assert file.read_text() == "fetched, and trained on\n"
    assert clone.is_unfinished(entered)  # what accepted them has to be published
    assert clone.began() == start
    clone.forget()
    clone.remember()
    file.write_text("fetched, and bad\n")
    clone.go_back()
    assert file.read_text() == "fetched, and trained on\n"
    assert not clone.is_unfinished(entered)


def test_a_moved_workspace_takes_its_clone_along_and_a_persons_branch_is_none_of_it(
    toy_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(toy_workspace, "checkout", "-q", "-b", "retrain/mine")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        assert not clone.refs(f"{clone.BRANCHES}*")
    there = toy_workspace.rename(toy_workspace.with_name("another place"))
    monkeypatch.setenv("GIT_DIR", "nowhere")  # as git sets it for its hooks
    with clone.entered(there):
        clone.synchronize(there)
        assert clone.git("remote", "get-url", "origin") == str(there)


def test_what_this_machine_sets_for_a_remote_adds_to_what_is_committed(toy_workspace: Path) -> None:
    for words in (["add", "-q", "-d", "store", "../store"], ["modify", "--local", "store", "jobs", "2"]):
        subprocess.run(["dvc", "remote", *words], cwd=toy_workspace, env=environment(), check=True)
    git(toy_workspace, "commit", "-qam", "a remote")
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        words = ["dvc", "config", "--local", "remote.store.url"]
        shown = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout
    assert Path(shown.strip()) == toy_workspace.parent / "store"


def test_params_that_are_no_yaml_are_told(toy_workspace: Path) -> None:
    commit(toy_workspace, params_yaml="<<<<<<< mine\ningest: [\n")
    with (
        clone.entered(toy_workspace),
        pytest.raises(ConfigError, match=r"params\.yaml: the committed file is not valid YAML"),
    ):
        clone.synchronize(toy_workspace)


def test_data_files_outlive_a_synchronizing_that_is_cut_off(entered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dvc.lock").write_text("of: the clone\n")
    commit(entered, **{"pipeline/works/ingest_py": "# of the workspace\n"})
    git_ = clone.git

    def cut_off(*words: str, **more: object) -> str:
        said = git_(*words, **more)  # type: ignore[arg-type]
        if words[0] == "checkout":
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr(clone, "git", cut_off)
    with pytest.raises(KeyboardInterrupt):
        clone.synchronize(entered)
    assert Path("dvc.lock").read_text() != "of: the clone\n"
    monkeypatch.setattr(clone, "git", git_)
    clone.synchronize(entered)
    assert Path("dvc.lock").read_text() == "of: the clone\n"


@pytest.mark.parametrize("torn", ["", "outs:\n- md5: [", "\udcff"])
def test_a_data_file_that_dvc_was_killed_in_writing_is_that_of_before(entered: Path, torn: str) -> None:
    lock, mine = (Path(name).read_bytes() for name in ("dvc.lock", "data/raw/mine.dvc"))
    for name in ("dvc.lock", "data/raw/mine.dvc"):
        Path(name).write_text(torn, errors="surrogateescape")
    clone.synchronize(entered)
    assert (Path("dvc.lock").read_bytes(), Path("data/raw/mine.dvc").read_bytes()) == (lock, mine)

    Path("dvc.lock").write_text("of: the clone\n")
    clone.remember()
    Path("dvc.lock").write_text(torn, errors="surrogateescape")
    clone.synchronize(entered)
    assert Path("dvc.lock").read_text() == "of: the clone\n"


def test_a_shallow_workspace_is_followed(toy_workspace: Path, tmp_path: Path) -> None:
    commit(toy_workspace, **{"pipeline/works/ingest_py": "# of the second commit\n"})
    shallow = tmp_path / "shallow"
    git(toy_workspace, "clone", "-q", "--depth", "1", toy_workspace.as_uri(), str(shallow))
    for words, then in (("second", "third"), ("third", "fourth")):
        with clone.entered(shallow):
            clone.synchronize(shallow)
            assert Path("pipeline/works/ingest.py").read_text() == f"# of the {words} commit\n"
        commit(toy_workspace, **{"pipeline/works/ingest_py": f"# of the {then} commit\n"})
        git(shallow, "fetch", "-q", "--depth", "1")
        git(shallow, "reset", "-q", "--hard", "FETCH_HEAD")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("params.yaml", None, "is not committed"),
        ("params.yaml", b"", "has no sections"),
        ("params.yaml", b"caf\xe9: 1\n", "is not valid YAML"),
        (".dvc/config", b"[core\n", "DVC can't read its config there"),
    ],
)
def test_a_commit_that_can_not_be_worked_with_is_told_in_one_line(
    toy_workspace: Path, name: str, content: bytes | None, why: str
) -> None:
    (toy_workspace / name).unlink()
    if content is not None:
        (toy_workspace / name).write_bytes(content)
    commit(toy_workspace)
    with clone.entered(toy_workspace), pytest.raises(ConfigError, match=why) as refused:
        clone.synchronize(toy_workspace)
    assert "\n" not in str(refused.value)


def test_a_cache_that_is_set_for_all_of_the_machine_is_the_clones_too(
    toy_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    words = ["dvc", "cache", "dir", "--global", str(tmp_path / "shared")]
    subprocess.run(words, cwd=toy_workspace, env=environment(), check=True)
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        shown = subprocess.run(["dvc", "cache", "dir"], env=environment(), capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()) == tmp_path / "shared"
