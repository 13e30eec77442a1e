"""The git repository of a workspace, to and from a backup."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.runtime.atomic_files import remove

BRANCH = "image-captioning-backup"


def bundle(file: Path) -> bool:
    """Write the repository's branches and tags, and as the branch `BRANCH` the files with what is not committed.

    Returns:
        Whether there is a repository with a commit.

    Raises:
        TemporaryError: git failed.
    """
    if not Path(".git").exists() or not _git("rev-list", "--max-count=1", "--all"):
        return False
    index = paths.WORK / "backup-index"
    remove(index)
    index.parent.mkdir(parents=True, exist_ok=True)
    ref = f"refs/heads/{BRANCH}"
    before = _git("for-each-ref", "--format=%(objectname)", ref)  # a clone of a backup has it, and may be on it
    try:
        head = _git("rev-parse", "HEAD")
        with_index = {"GIT_INDEX_FILE": str(index.absolute())}
        _git("read-tree", head, **with_index)
        _git("add", "--update", ".", **with_index)
        if new := [
            name for name in _git("ls-files", "--others", "--exclude-standard", "-z").split("\0") if _is_dvc(name)
        ]:
            _git("add", "--", *new, **with_index)
        tree = _git("write-tree", **with_index)
        who = {
            f"GIT_{role}_{what}": "image-captioning" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        commit = _git("commit-tree", tree, "-p", head, "-m", "The workspace at the time of the backup", **who)
        _git("update-ref", ref, commit)
        _git("bundle", "create", "--quiet", str(file), "--branches", "--tags")
    finally:
        remove(index)
        _git("update-ref", *((ref, before) if before else ("-d", ref)))
    return True


def _is_dvc(name: str) -> bool:
    """Return whether DVC wrote a file that is to be committed."""
    return name == str(paths.DVC_LOCK) or name.endswith((".dvc", "/.gitignore"))


def unbundle(file: Path, url: str) -> str:
    """Bring the backup's branches into this repository as `restored/NAME`; return how to use them.

    Args:
        file: what `bundle` wrote.
        url: where it is in the backup.

    Raises:
        TemporaryError: git failed.
    """
    if not Path(".git").exists():
        return f"; the git repository is in {url}: `git clone -b {BRANCH}` of that file"
    _git("fetch", "--quiet", "--no-tags", str(file), "+refs/heads/*:refs/heads/restored/*")
    return f"; `git reset --hard restored/{BRANCH}` brings its params and .dvc files, then `dvc pull` its data"


def _git(*words: str, **environment: str) -> str:
    everything = {**os.environ, **environment}
    done = subprocess.run(["git", *words], env=everything, capture_output=True, text=True, check=False)
    if done.returncode:
        why = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
        raise TemporaryError(f"git {words[0]}: {why}; mend that, then run it again")
    return done.stdout.strip()
