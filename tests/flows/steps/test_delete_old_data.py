"""What a year of retrainings piles up in DVC's cache, and what must stay of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

from flows.workspace import clone
from pipeline.config import paths
from tests.conftest import run, set_params
from tests.flows.toy import git


def dvc(folder: Path, *words: str) -> None:
    """Run DVC; in this process, because it takes seconds to start."""
    with contextlib.chdir(folder):
        assert dvc_main([*words]) == 0


def bring(number: int) -> None:
    """Data of a retraining."""
    file = Path("data/raw/mine/captions.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # DVC may have linked it to its cache
    file.write_text(f"week {number}\n")
    dvc(Path(), "add", "-q", "data/raw/mine")


def week(number: int) -> str:
    """A retraining's data, committed and published; gives the commit."""
    bring(number)
    made, branch = clone.commit(f"retrain/2026-01-0{number}", f"week {number}")
    assert branch
    clone.publish(branch)
    return made


def weeks_in_cache(toy_workspace: Path) -> list[int]:
    texts = [path.read_text() for path in (toy_workspace / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    return sorted(int(text.split()[1]) for text in texts if text.startswith("week "))


def delete(toy_workspace: Path, kept: list[str]) -> str:
    module = [sys.executable, "-P", "-m", "flows.steps.delete_old_data"]
    commits = ["--keep-commit", *kept] if kept else []
    done = run(Path(), *module, "--workspace", str(toy_workspace), *commits, PYTHONPATH=str(toy_workspace))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def year(toy_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    set_params(toy_workspace, {"retrain.keep": 2})
    git(toy_workspace, "commit", "-qam", "keep two")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z")
    made = {}
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        for number in range(1, 7):
            monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-0{number}T00:00:00Z")
            made[number] = week(number)
    return made


def test_the_newest_and_those_of_kept_versions_stay_and_whatever_the_workspace_names(
    toy_workspace: Path, year: dict[int, str]
) -> None:
    assert weeks_in_cache(toy_workspace) == [1, 2, 3, 4, 5, 6]
    git(toy_workspace, "merge", "-q", "--no-edit", "retrain/2026-01-02")  # a person's branch has it now
    git(toy_workspace, "checkout", "-q", "retrain/2026-01-03")
    git(toy_workspace, "checkout", "-q", "main")  # the reflog has it now
    with clone.entered(toy_workspace):
        said = delete(toy_workspace, [year[1]])
        assert "4 old data states" not in said
        assert weeks_in_cache(toy_workspace) == [1, 2, 3, 5, 6]
        left = git(toy_workspace, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()
        assert left == ["retrain/2026-01-01", "retrain/2026-01-05", "retrain/2026-01-06"]
        assert [*clone.refs("refs/heads/retrain/*")] == [f"refs/heads/retrain/2026-01-0{n}" for n in (6, 5, 1)]
        assert "deleted 0 old data states, 0 objects" in delete(toy_workspace, [year[1]])
    dvc(toy_workspace, "checkout", "data/raw/mine.dvc")
    assert (toy_workspace / "data/raw/mine/captions.csv").read_text() == "week 2\n"


def test_data_that_were_fetched_and_refused_go_and_the_training_states_of_what_has_ended(toy_workspace: Path) -> None:
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        clone.remember()
        file = Path("data/raw/mine/captions.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("week 9\n")
        dvc(Path(), "add", "-q", "data/raw/mine")
        clone.put_aside("refused")
        clone.go_back()
        dvc(Path(), "checkout", "-q", "data/raw/mine.dvc")
        assert weeks_in_cache(toy_workspace) == [9]
        (paths.TRAININGS / "abc").mkdir(parents=True)
        delete(toy_workspace, [])
        assert weeks_in_cache(toy_workspace) == []
        assert file.read_text() == "a.jpg,a boat\n"
        assert not list(paths.TRAININGS.glob("*"))
        assert not clone.refs(f"{clone.ASIDE}*")
    dvc(toy_workspace, "status", "-q")


def test_a_cache_that_others_may_share_is_left_alone(toy_workspace: Path, tmp_path: Path) -> None:
    dvc(toy_workspace, "cache", "dir", "--local", str(tmp_path / "shared"))
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        week(1)
        clone.put_aside("refused")
        before = sorted((tmp_path / "shared").rglob("*"))
        assert "nothing is removed from it" in delete(toy_workspace, [])
    assert sorted((tmp_path / "shared").rglob("*")) == before


def listing(text: str, toy_workspace: Path) -> Path:
    """The listing in the cache of the folder that holds `captions.csv` with a text."""
    (file,) = [p for p in (toy_workspace / ".dvc/cache/files/md5").rglob("*") if p.is_file() and p.read_text() == text]
    hash_ = file.parent.name + file.name
    (found,) = [p for p in (toy_workspace / ".dvc/cache/files/md5").rglob("*.dir") if hash_ in p.read_text()]
    return found


def test_data_of_a_version_that_is_kept_stay_though_it_was_overtaken_before_it_was_published(
    toy_workspace: Path,
) -> None:
    with clone.entered(toy_workspace):
        clone.synchronize(toy_workspace)
        clone.remember()
        bring(1)
        _, kept = clone.put_aside("registered, and not yet published")
        bring(2)
        clone.put_aside("overtaken")
        clone.go_back()
        dvc(Path(), "checkout", "-q", "-f", "data/raw/mine.dvc")
        delete(toy_workspace, [kept])
        assert weeks_in_cache(toy_workspace) == [1]
        assert [*clone.refs(f"{clone.ASIDE}*").values()] == [kept]
        delete(toy_workspace, [])
        assert weeks_in_cache(toy_workspace) == []


def test_a_folder_whose_listing_is_not_here_takes_nothing_else_of_its_commit_with_it(
    toy_workspace: Path, year: dict[int, str]
) -> None:
    (toy_workspace / "data/raw/more").mkdir()
    (toy_workspace / "data/raw/more/captions.csv").write_text("more\n")
    dvc(toy_workspace, "add", "-q", "data/raw/more")
    git(toy_workspace, "add", "-A")
    git(toy_workspace, "commit", "-qm", "another source, of which this cache has nothing")
    git(toy_workspace, "merge", "-q", "--no-edit", "retrain/2026-01-02")
    listing("more\n", toy_workspace).unlink()
    with clone.entered(toy_workspace):
        delete(toy_workspace, [])
        assert weeks_in_cache(toy_workspace) == [2, 5, 6]


def test_nothing_goes_while_the_workspaces_own_files_can_not_be_read(toy_workspace: Path, year: dict[int, str]) -> None:
    (toy_workspace / "dvc.yaml").write_text("stages: [being edited\n")
    with clone.entered(toy_workspace):
        assert "nothing is removed from its cache" in delete(toy_workspace, [])
        assert weeks_in_cache(toy_workspace) == [1, 2, 3, 4, 5, 6]
