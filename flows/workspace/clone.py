"""The clone in which retraining works, so that a person can go on editing and a failed run touches nothing of theirs.

It lies in .work/clone and has the code and params of the workspace's last commit, DVC's cache and remotes in common
with the workspace, and a state of the data of its own: its `.dvc` files and `dvc.lock` go on from retraining to
retraining, but where the workspace has committed other ones, those count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.workspace.dvc_repo import in_words
from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime.atomic_files import PARTIAL, remove, sha256_of, swapped_in

FOLDER = paths.WORK / "clone"
_KEPT = paths.WORK / "kept"  # the data files of the clone, while the workspace's commit is checked out over them
BEFORE = paths.WORK / "before"  # the data files when a retraining last came to its end, while one has not
_NEW, _BASE = "refs/retrain/new", "refs/retrain/base"  # the workspace's commit now, and when it was last looked at
BRANCHES = "refs/heads/"
ASIDE = "refs/retrain/aside/"  # states of the data that are on no branch: refused, overtaken, or not yet published
_WHO = {"NAME": "flows.retrain", "EMAIL": "flows.retrain@localhost"}
_SQLITE = "sqlite:///"
# Git sets these for its hooks; with them it would work on another repository than that of the folder.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")


def git(*words: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run git; gives what it says.

    Raises:
        TemporaryError: it failed; in its own words.
    """
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO.items()}
    here = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", *words],  # hooks are for people's commits
        cwd=folder,
        env={**here, **who, "LC_ALL": "C", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TemporaryError(f"git {words[0]}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout.strip()


@contextmanager
def entered(workspace: Path) -> Iterator[None]:
    """Make the clone where there is none, and go there; MLflow stays the workspace's.

    Raises:
        ConfigError: the workspace is no git repository with a commit.
    """
    _check(workspace)
    clone = workspace / FOLDER
    clone.parent.mkdir(exist_ok=True)
    with FileLock(clone.with_suffix(".lock")):
        if not clone.exists():
            place = clone.with_name(f".{clone.name}{PARTIAL}")
            remove(place)
            # No `git clone`: that brings the branch that is checked out there, which is no retraining's.
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
        return f"{_SQLITE}{workspace / uri.removeprefix(_SQLITE)}"  # an absolute path stays as it is
    return uri


def synchronize(workspace: Path) -> None:
    """Bring the clone, which is the current folder, to the workspace's last commit.

    What git does not keep but a run needs comes along: the settings of DVC on this machine, the pictures that must not
    be used, and a checkpoint that lies in the workspace.
    """
    for left in Path(".git").glob("**/*.lock"):  # of a git that was killed; the clone is ours alone
        left.unlink()
    git("remote", "set-url", "origin", str(workspace))  # it may have been moved, or copied with its clone
    # A workspace that is shallow is one whose boundary moves.
    git("fetch", "--quiet", "--no-tags", "--update-shallow", "origin", "+HEAD:" + _NEW)
    for path, content in _contents(_KEPT).items():  # the last time was cut off
        _write(Path(path), content)
    _drop_torn()
    mine = {path: Path(path).read_bytes() for path in data_files()}
    new, base = _blobs(_NEW), _blobs(_BASE)
    kept = {path: content for path, content in mine.items() if new.get(path) == base.get(path)} if base else {}
    _save(kept, _KEPT)
    git("checkout", "--quiet", "--force", "--detach", _NEW)
    for path, content in kept.items():
        _write(Path(path), content)
    _bring_up_to_date(BEFORE, kept)
    git("update-ref", _BASE, _NEW)
    _remove_whole(_KEPT)
    _configure_dvc(workspace)
    params = _committed_params()
    _bring_excluded(workspace, params)
    _bring_checkpoint(workspace, params)


def _committed_params() -> dict[str, Any]:
    try:
        params = YAML(typ="safe", pure=True).load(paths.PARAMS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{paths.PARAMS}: is not committed; `git add` and `git commit` it") from None
    except (YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"params.yaml: as it was committed it is no YAML ({why}); commit one that is") from None
    if not isinstance(params, dict):
        raise ConfigError("params.yaml: as it was committed it has no sections; commit one that has")
    return params


def _drop_torn() -> None:
    """Remove data files that DVC was killed in writing, for those of before to take their place."""
    for path in map(Path, data_files()):
        try:
            whole = isinstance(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")), dict)
        except (YAMLError, UnicodeDecodeError):
            whole = False
        if not whole:
            path.unlink()
            if (BEFORE / path).is_file():
                _write(path, (BEFORE / path).read_bytes())


def _bring_up_to_date(before: Path, kept: Mapping[str, bytes]) -> None:
    """What the workspace has committed counts, too, for the state that a failed retraining goes back to."""
    if before.is_dir():
        for path in {*data_files(), *_files_below(before)} - set(kept):
            if Path(path).is_file():
                _write(before / path, Path(path).read_bytes())
            else:
                remove(before / path)


def remember() -> None:
    """Keep the data files as they are, to go back to, for a retraining that begins.

    Where an earlier one did not come to its end, those before it stay kept; what it had fetched is put aside.
    """
    now = {path: Path(path).read_bytes() for path in data_files()}
    if not BEFORE.is_dir():
        _save(now, BEFORE)
    elif now != _contents(BEFORE):
        put_aside("overtaken")


def began() -> float:
    """When the retraining that goes on began, in seconds since 1970; the first time, where it was cut off."""
    return min(path.stat().st_mtime for path in (BEFORE, *BEFORE.rglob("*")))  # some may have been brought up to date


def is_unfinished(workspace: Path) -> bool:
    """Whether a retraining of this workspace has begun and did not come to its end."""
    return (workspace / FOLDER / BEFORE).is_dir()


def go_back() -> None:
    """Put back the data files that were kept, if any were."""
    if BEFORE.is_dir():
        for path in set(data_files()) - _files_below(BEFORE):
            remove(Path(path))
        for path in _files_below(BEFORE):
            _write(Path(path), (BEFORE / path).read_bytes())
        forget()


def forget() -> None:
    """Keep no earlier state of the data files."""
    _remove_whole(BEFORE)


def _files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in _files_below(folder)}


def _save(files: Mapping[str, bytes], folder: Path) -> None:
    with swapped_in(folder) as (place,):
        place.mkdir()
        for path, content in files.items():
            _write(place / path, content)


def _remove_whole(folder: Path) -> None:
    """Remove a folder; cut off, it is whole or gone, and not a part of it."""
    if folder.is_dir():
        place = folder.with_name(f".{folder.name}{PARTIAL}")
        remove(place)
        folder.rename(place)
        remove(place)


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = paths.WORK / f"{path.name}{PARTIAL}"  # not beside it: a source's folder holds raw files and nothing else
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    place.replace(path)


def data_files() -> list[str]:
    """The `.dvc` files and `dvc.lock` of the current folder: what says which data there are."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "*.dvc", str(paths.DVC_LOCK))
    return sorted(path for path in set(filter(None, listed.split("\0"))) if Path(path).is_file())


def data_state() -> str:
    """A hash of the state of the data in the current folder."""
    return sha256_of(*map(Path, data_files()))


def _blobs(commit: str) -> dict[str, str]:
    """The hashes of the data files of a commit, by their paths; none where there is no such commit."""
    try:
        lines = git("ls-tree", "-r", "-z", commit).split("\0")
    except TemporaryError:
        return {}
    entries = [line.partition("\t") for line in lines if line]
    return {path: head.split()[2] for head, _, path in entries if path.endswith(".dvc") or path == str(paths.DVC_LOCK)}


def _configure_dvc(workspace: Path) -> None:
    """Give the clone the cache, remotes and settings that the workspace has on this machine."""
    from dvc.config import Config, merge
    from dvc.config import ConfigError as BadDvcConfig

    theirs: dict[str, Any] = {}
    try:
        there = Config(str(workspace / ".dvc"), validate=False)
        for level in ("repo", "local"):
            merge(theirs, there.load_one(level))
        cache = there.read()["cache"].get("dir")  # which may be set for all of this machine
    except BadDvcConfig as error:
        raise ConfigError(f"{workspace / '.dvc'}: DVC can't read its config there: {in_words(error)}") from None
    theirs.setdefault("cache", {})["dir"] = cache or str(workspace / ".dvc" / "cache")
    place = Path(".dvc/config.local")
    place.unlink(missing_ok=True)
    place.touch(mode=0o600)  # it may hold the key to a remote
    with Config(".dvc", validate=False).edit("local") as mine:
        mine.update(theirs)


def _bring_excluded(workspace: Path, params: Mapping[str, Any]) -> None:
    for name in (params.get("ingest") or {}).get("exclude") or []:
        there = workspace / name
        if there.is_dir() and not Path(name).is_absolute():
            if ".." in Path(name).parts:  # what must not be used would be used
                raise ConfigError(f"params.yaml: ingest.exclude: {name} leads out of here; name its whole path")
            remove(Path(name))
            shutil.copytree(there, name)


def _bring_checkpoint(workspace: Path, params: Mapping[str, Any]) -> None:
    """Params name a checkpoint that has to be there before anything else can be asked."""
    name = str((params.get("finetune") or {}).get("checkpoint", ""))
    if not name or Path(name).exists():
        return
    if Path(name).is_symlink():  # to where the workspace was before it was moved
        Path(name).unlink()
    if Path(f"{name}.dvc").is_file():
        words = [str(Path(sys.executable).with_name("dvc")), "pull", "--quiet", f"{name}.dvc"]
        quiet = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TemporaryError(f"{name}: can't be brought by DVC: {' '.join(done.stderr.split())}")
    elif (workspace / name).is_dir():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to((workspace / name).resolve())


def commit(wanted: str, message: str) -> tuple[str, str | None]:
    """Commit the data files and the params, on the workspace's commit, as a branch of the clone.

    Neither what is checked out nor the index is touched.

    Args:
        wanted: the name of the branch, if it is free.
        message: of the commit.

    Returns:
        The commit, and its branch: a new one, or the one that a retraining which was cut off made of the same; None
        where the workspace's own commit has all this already.
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
    """Commit the data files as they are under a ref of their own; gives both.

    `flows.steps.tidy` clears it where no version that is kept is tagged with that commit.
    """
    ref, commit = f"{ASIDE}{time.time_ns()}", git("commit-tree", _tree(), "-p", _NEW, "-m", message)
    git("update-ref", ref, commit)
    return ref, commit


def _tree() -> str:
    """The workspace's commit with the data files and params as they are here, as a tree of git."""
    index = {"GIT_INDEX_FILE": str(Path(".git/retrain-index").absolute())}
    try:
        git("read-tree", _NEW, environment=index)
        git("add", "--force", "--", *data_files(), str(paths.PARAMS), environment=index)
        return git("write-tree", environment=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)


def _free_branch(wanted: str) -> str:
    """The name of a branch that neither the clone nor the workspace has, `wanted` if possible."""
    taken = {*refs(f"{BRANCHES}{wanted}*"), *_theirs(f"{BRANCHES}{wanted}*")}
    names = [wanted, *(f"{wanted}.{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if BRANCHES + name not in taken)


def refs(pattern: str) -> dict[str, str]:
    """The clone's refs below a pattern, the newest first, each with its commit."""
    lines = git("for-each-ref", "--sort=-creatordate", "--format=%(refname) %(objectname)", pattern).splitlines()
    return {name: commit for name, _, commit in (line.partition(" ") for line in lines)}


def _theirs(pattern: str) -> dict[str, str]:
    lines = git("ls-remote", "origin", pattern).splitlines()
    return {name: commit for commit, _, name in (line.partition("\t") for line in lines)}


def publish(branch: str) -> None:
    """Give the workspace's repository a branch of the clone."""
    git("push", "--quiet", "origin", f"{BRANCHES}{branch}:{BRANCHES}{branch}")


def withdraw(ref: str, of: str) -> None:
    """Delete the workspace's branch of that name, if it still is at that commit and nobody has it checked out."""
    if _theirs(ref).get(ref) == of:
        with suppress(TemporaryError):
            git("push", "--quiet", f"--force-with-lease={ref}:{of}", "origin", f":{ref}")


def forget_ref(ref: str) -> None:
    """Delete a ref of the clone."""
    git("update-ref", "-d", ref)


def commits_of_data(workspace: Path) -> list[str]:
    """The commits of the workspace, on whatever branch, tag, stash or reflog, that change its data files."""
    # `--full-history`: both sides of a merge that took one of them.
    names = ("*.dvc", f"*{paths.DVC_LOCK}", "*dvc.yaml", str(paths.PARAMS))
    words = ("rev-list", "--all", "--reflog", "--full-history", "--", *names)
    return git(*words, folder=workspace).split()
