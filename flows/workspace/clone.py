"""The clone that retraining runs in, so that people can keep editing and a failed run changes none of their files.

The clone is in .work/clone. It has the code and params of the workspace's last commit, shares DVC's cache and remotes
with the workspace, and has its own data state: its `.dvc` files and `dvc.lock` persist from one retraining to the next.
If the workspace has committed a change to one of them, the workspace's version wins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.workspace import untracked
from flows.workspace.git import git
from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime import dvc_files
from pipeline.runtime.atomic_files import PARTIAL, remove, sha256_of, swapped_in

FOLDER = paths.WORK / "clone"
_KEPT = paths.WORK / "kept"  # the clone's data files, saved while the workspace's commit is checked out over them
BEFORE = paths.WORK / "before"  # data files from before a retraining; exists only until it finishes
ACCEPTED = paths.WORK / "accepted"  # exists if all stages accepted its data, which BEFORE has then; when it began
_NEW, _BASE = "refs/retrain/new", "refs/retrain/base"  # the workspace's commit now and at the last synchronization
BRANCHES = "refs/heads/"
ASIDE = "refs/retrain/aside/"  # data states on no branch: refused, overtaken or not yet published
_SQLITE = "sqlite:///"


@contextmanager
def entered(workspace: Path) -> Iterator[None]:
    """Create the clone if it does not exist and change into it; MLflow keeps using the workspace's tracking store.

    Raises:
        ConfigError: the workspace is not a git repository with a commit.
    """
    _check(workspace)
    clone = workspace / FOLDER
    clone.parent.mkdir(exist_ok=True)
    with FileLock(clone.with_suffix(".lock")):
        if not clone.exists():
            place = clone.with_name(f".{clone.name}{PARTIAL}")
            remove(place)
            # Not `git clone`: it would create the branch checked out in the workspace, which belongs to no retraining.
            git("init", "--quiet", str(place))
            git("remote", "add", "origin", str(workspace), folder=place)
            place.rename(clone)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = _mlflow(workspace, before)
    try:
        with chdir(clone):
            yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _check(workspace: Path) -> None:
    try:
        top = git("rev-parse", "--show-toplevel", folder=workspace)
        git("rev-parse", "--verify", "HEAD", folder=workspace)
    except (TemporaryError, OSError) as error:
        raise ConfigError(
            f"{workspace}: retraining works on what is committed, and there is no commit here ({error}); `git init`,"
            " `git add` and `git commit` it"
        ) from None
    if Path(top).resolve() != workspace.resolve():
        raise ConfigError(f"{workspace}: is a folder within the git repository {top}; retraining needs one of its own")


def _mlflow(workspace: Path, uri: str | None) -> str:
    if uri is None:
        return f"{_SQLITE}{workspace / 'mlflow.db'}"
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{workspace / uri.removeprefix(_SQLITE)}"  # an absolute path stays unchanged
    return uri


def synchronize(workspace: Path) -> None:
    """Update the clone, the current folder, to the workspace's last commit; also bring untracked files it needs."""
    for left in Path(".git").glob("**/*.lock"):  # left by a killed git; no other process uses the clone
        left.unlink()
    git("remote", "set-url", "origin", str(workspace))  # the workspace may have been moved, or copied with its clone
    # The boundary of a shallow workspace may have moved.
    git("fetch", "--quiet", "--no-tags", "--update-shallow", "origin", "+HEAD:" + _NEW)
    for path, content in _contents(_KEPT).items():  # the last synchronization was interrupted
        _write(Path(path), content)
    _drop_torn()
    mine = _data()
    new, base = _blobs(_NEW), _blobs(_BASE)
    kept = {path: content for path, content in mine.items() if new.get(path) == base.get(path)} if base else {}
    _save(kept, _KEPT)
    git("checkout", "--quiet", "--force", "--detach", _NEW)
    for path, content in kept.items():
        _write(Path(path), content)
    _bring_up_to_date(BEFORE, kept)
    git("update-ref", _BASE, _NEW)
    _remove_whole(_KEPT)
    untracked.bring(workspace, _committed_params())


def _committed_params() -> dict[str, Any]:
    try:
        params = YAML(typ="safe", pure=True).load(paths.PARAMS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{paths.PARAMS}: is not committed; `git add` and `git commit` it") from None
    except (YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"params.yaml: the committed file is not valid YAML ({why}); fix it and commit") from None
    if not isinstance(params, dict):
        raise ConfigError("params.yaml: as it was committed it has no sections; commit one that has")
    return params


def _drop_torn() -> None:
    """Replace data files that are incomplete because DVC was killed; without an earlier version, only remove them."""
    for path in map(Path, data_files()):
        if dvc_files.is_torn(path):
            path.unlink()
            if (BEFORE / path).is_file():
                _write(path, (BEFORE / path).read_bytes())


def _bring_up_to_date(before: Path, kept: Mapping[str, bytes]) -> None:
    """Apply the workspace's committed data files to the state that a failed retraining restores."""
    if before.is_dir():
        for path in {*data_files(), *_files_below(before)} - set(kept):
            if Path(path).is_file():
                _write(before / path, Path(path).read_bytes())
            else:
                remove(before / path)


def remember() -> None:
    """Save the current data files when a retraining begins, so that `go_back` can restore them.

    If an earlier retraining did not finish, the data files from before it stay saved, and `put_aside` commits what it
    had fetched.
    """
    now = _data()
    if not BEFORE.is_dir():
        ACCEPTED.unlink(missing_ok=True)
        _save(now, BEFORE)
    elif now != _contents(BEFORE):
        put_aside("overtaken")


def accept() -> None:
    """Make `go_back` restore the current data files, which all stages have accepted, also if bad ones follow."""
    start = began()
    _save(_data(), BEFORE)
    _write(ACCEPTED, str(start).encode())


def began() -> float:
    """Return when the current retraining first began, before any interruption, in seconds since 1970."""
    if ACCEPTED.exists():
        return float(ACCEPTED.read_text())
    return min(path.stat().st_mtime for path in (BEFORE, *BEFORE.rglob("*")))  # some files may have been updated since


def is_unfinished(workspace: Path) -> bool:
    """Return whether a retraining of this workspace began and did not finish."""
    return (workspace / FOLDER / BEFORE).is_dir()


def go_back() -> None:
    """Restore the saved data files, if there are any."""
    if BEFORE.is_dir():
        for path in set(data_files()) - _files_below(BEFORE):
            remove(Path(path))
        for path in _files_below(BEFORE):
            _write(Path(path), (BEFORE / path).read_bytes())
        if not ACCEPTED.exists():  # else its retraining goes on at the next run
            forget()


def forget() -> None:
    """Delete the saved data files."""
    _remove_whole(BEFORE)
    ACCEPTED.unlink(missing_ok=True)


def _files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in _files_below(folder)}


def _data() -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in data_files()}


def _save(files: Mapping[str, bytes], folder: Path) -> None:
    with swapped_in(folder) as (place,):
        place.mkdir()
        for path, content in files.items():
            _write(place / path, content)


def _remove_whole(folder: Path) -> None:
    """Remove a folder atomically: after an interruption the folder is either complete or gone."""
    if folder.is_dir():
        place = folder.with_name(f".{folder.name}{PARTIAL}")
        remove(place)
        folder.rename(place)
        remove(place)


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = paths.WORK / f"{path.name}{PARTIAL}"  # not beside it: a source's folder may contain only raw files
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    place.replace(path)


def data_files() -> list[str]:
    """Return the `.dvc` files and `dvc.lock` of the current folder, which define the data state."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*.dvc", str(paths.DVC_LOCK))
    return sorted(path for path in set(filter(None, listed.split("\0"))) if Path(path).is_file())


def data_state() -> str:
    """Return a hash of the data state in the current folder."""
    return sha256_of(*map(Path, data_files()))


def _blobs(commit: str) -> dict[str, str]:
    """Map the paths of a commit's data files to their hashes; empty if the commit does not exist."""
    try:
        lines = git("ls-tree", "-r", "-z", commit).split("\0")
    except TemporaryError:
        return {}
    entries = [line.partition("\t") for line in lines if line]
    return {path: head.split()[2] for head, _, path in entries if path.endswith(".dvc") or path == str(paths.DVC_LOCK)}


def commit(wanted: str, message: str) -> tuple[str, str | None]:
    """Commit the data files and params on top of the workspace's commit, as a branch of the clone.

    This changes neither the working tree nor the index.

    Args:
        wanted: the branch name to use if it is free.
        message: the commit message.

    Returns:
        The commit and its branch. If an interrupted retraining already committed the same content, its branch is
        reused. The branch is None if the workspace's own commit already has this content.
    """
    tree, base = _tree(), git("rev-parse", _NEW)
    if tree == git("rev-parse", f"{base}^{{tree}}"):
        return base, None
    for ref, made in refs(f"{BRANCHES}{wanted.partition('/')[0]}/*").items():
        if git("rev-parse", f"{made}^{{tree}}", f"{made}^").split() == [tree, base]:
            return made, ref.removeprefix(BRANCHES)
    branch = _free_branch(wanted)
    made = git("commit-tree", tree, "-p", base, "-m", message)
    git("update-ref", BRANCHES + branch, made)
    return made, branch


def put_aside(message: str) -> tuple[str, str]:
    """Commit the current data files under a separate ref and return the ref and the commit.

    `flows.steps.delete_old_data` deletes the ref if no kept version is tagged with the commit.
    """
    ref, commit = f"{ASIDE}{time.time_ns()}", git("commit-tree", _tree(), "-p", _NEW, "-m", message)
    git("update-ref", ref, commit)
    return ref, commit


def _tree() -> str:
    """Return a git tree of the workspace's commit with the clone's current data files and params."""
    index = {"GIT_INDEX_FILE": str(Path(".git/retrain-index").absolute())}
    try:
        git("read-tree", _NEW, environment=index)
        git("add", "--force", "--", *data_files(), str(paths.PARAMS), environment=index)
        return git("write-tree", environment=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)


def _free_branch(wanted: str) -> str:
    """Return a branch name that neither the clone nor the workspace has; `wanted` if possible."""
    taken = {*refs(f"{BRANCHES}{wanted}*"), *_theirs(f"{BRANCHES}{wanted}*")}
    names = [wanted, *(f"{wanted}.{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if BRANCHES + name not in taken)


def refs(pattern: str) -> dict[str, str]:
    """Map the clone's refs that match a pattern to their commits, newest first."""
    lines = git("for-each-ref", "--sort=-creatordate", "--format=%(refname) %(objectname)", pattern).splitlines()
    return dict(line.split(" ") for line in lines)


def _theirs(pattern: str) -> dict[str, str]:
    lines = git("ls-remote", "origin", pattern).splitlines()
    return {name: commit for commit, _, name in (line.partition("\t") for line in lines)}


def publish(branch: str) -> None:
    """Push a branch of the clone to the workspace's repository."""
    git("push", "--quiet", "origin", f"{BRANCHES}{branch}:{BRANCHES}{branch}")


def withdraw(ref: str, of: str) -> None:
    """Delete a branch of the workspace if it still points to commit `of` and is not checked out."""
    if _theirs(ref).get(ref) == of:
        with suppress(TemporaryError):
            git("push", "--quiet", f"--force-with-lease={ref}:{of}", "origin", f":{ref}")


def forget_ref(ref: str) -> None:
    """Delete a ref of the clone."""
    git("update-ref", "-d", ref)


def commits_of_data(workspace: Path) -> list[str]:
    """Return the workspace's commits, from any branch, tag, stash or reflog, that change its data files."""
    # `--full-history` lists both sides of a merge that kept only one of them.
    names = ("*.dvc", f"*{paths.DVC_LOCK}", "*dvc.yaml", str(paths.PARAMS))
    words = ("rev-list", "--all", "--reflog", "--full-history", "--", *names)
    return git(*words, folder=workspace).split()
