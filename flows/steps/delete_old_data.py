"""Delete old retraining data from DVC's cache, old branches and training states; keep the newest `retrain.keep`.

Runs in the clone. Deletes only data of retrainings from DVC's cache. Keeps data that any branch, tag, stash or reflog
of the workspace references, and the data of the commits given as `--keep-commit`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.steps import publish
from flows.steps.check_updates import add_workspace
from flows.workspace import clone
from flows.workspace.dvc_repo import opened
from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import remove

if TYPE_CHECKING:
    from dvc.repo import Repo


def run(params: Params, args: argparse.Namespace) -> str:
    """Delete old data. Return the last line to print."""
    made = clone.refs(f"{clone.BRANCHES}{publish.FOLDER}/*")
    of_versions = set(args.keep_commit)
    newest = list(made)[: params.retrain.keep]
    states_of_data = {**made, **clone.refs(f"{clone.ASIDE}*")}
    old = {ref: commit for ref, commit in states_of_data.items() if ref not in newest and commit not in of_versions}
    for ref, commit in old.items():
        clone.withdraw(ref, commit)
    kept = set(states_of_data.values()) - set(old.values())
    removed = _clear_cache(args.workspace, set(old.values()), kept) if old else 0
    for ref in old:  # last: if the step dies before this, the next run repeats the work
        clone.forget_ref(ref)
    states = list(paths.TRAININGS.glob("*"))
    for state in states:  # the training has ended
        remove(state)
    return f"deleted {len(old)} old data states, {removed} objects in DVC's cache and {len(states)} training states"


def _clear_cache(workspace: Path, old: set[str], kept: set[str]) -> int:
    """Remove the objects that only `old` commits of the clone reference. Return their number."""
    from dvc.exceptions import RevCollectionError

    with opened() as repo:
        candidates = _objects(repo, old)
        here = _objects(repo, kept)
    with opened(workspace) as repo:
        if not Path(repo.cache.local.path).resolve().is_relative_to(workspace.resolve()):
            print("delete_old_data: DVC's cache is outside the workspace and may be shared: nothing is removed from it")
            return 0
        try:
            repo.used_objs(force=True)
        except RevCollectionError:  # dvc.yaml is being edited, so its references are unknown
            print(f"delete_old_data: DVC can't read its files in {workspace}: nothing is removed from its cache")
            return 0
        there = _objects(repo, clone.commits_of_data(workspace))
        superfluous = candidates - here - there
        # Folder listings last: if the step dies before this, the next run still knows what to delete.
        for found in sorted(superfluous, key=lambda found: found.isdir):
            odb = repo.cache.local if found.name == "md5" else repo.cache.legacy
            odb.delete(found.value)
    return len(superfluous)


def _objects(repo: Repo, commits: Iterable[str]) -> set[Any]:
    """Return the hashes that the working tree and the given commits of a repository reference.

    Skips commits that DVC can't read, and the files of folders whose listing is not in the cache.
    """
    used = repo.used_objs(revs=sorted(commits) or None, force=True, skip_failed=True)
    return {found for objects in used.values() for found in objects}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument(
        "--keep-commit", action="extend", nargs="+", default=[], metavar="COMMIT", help="keep the data of these commits"
    )


if __name__ == "__main__":
    entrypoint.main("delete_old_data", run, _arguments)
