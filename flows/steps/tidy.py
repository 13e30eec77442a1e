"""Tidy what retrainings pile up: DVC's cache, branches and training states, down to `retrain.keep` of the newest.

Works in the clone, after `pipeline.tracking.retention tidy` has said which versions are kept. Of DVC's cache only what
retrainings brought is looked at; whatever the workspace names, on any branch, tag, stash or reflog, stays, and so do
the data of kept versions.
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
from pipeline.runtime.atomic_files import read_json, remove

if TYPE_CHECKING:
    from dvc.repo import Repo


def run(params: Params, args: argparse.Namespace) -> str:
    """Delete what is beyond the bound; returns the last line to print."""
    made = clone.refs(f"{clone.BRANCHES}{publish.FOLDER}/*")
    of_versions = set(read_json(paths.VERSIONS)["commits"])
    newest = list(made)[: params.retrain.keep]
    states_of_data = {**made, **clone.refs(f"{clone.ASIDE}*")}
    old = {ref: commit for ref, commit in states_of_data.items() if ref not in newest and commit not in of_versions}
    for ref, commit in old.items():
        clone.withdraw(ref, commit)
    kept = set(states_of_data.values()) - set(old.values())
    removed = _clear_cache(args.workspace, set(old.values()), kept) if old else 0
    for ref in old:  # last: cut off before, the next tidying does it again
        clone.forget_ref(ref)
    states = list(paths.TRAININGS.glob("*"))
    for state in states:  # the training has ended
        remove(state)
    return (
        f"{len(old)} old states of the data forgotten, {removed} objects of DVC's cache and {len(states)} training"
        " states removed"
    )


def _clear_cache(workspace: Path, old: set[str], kept: set[str]) -> int:
    """Remove what only `old` commits of the clone name; gives the number of objects."""
    from dvc.exceptions import RevCollectionError

    with opened() as repo:
        candidates = _objects(repo, old)
        here = _objects(repo, kept)
    with opened(workspace) as repo:
        if not Path(repo.cache.local.path).resolve().is_relative_to(workspace.resolve()):
            print("tidy: DVC's cache lies outside the workspace, where others may use it: nothing is removed from it")
            return 0
        try:
            repo.used_objs(force=True)
        except RevCollectionError:  # somebody is editing it; what it names is not known
            print(f"tidy: DVC can't read the files of {workspace} as they are now: nothing is removed from its cache")
            return 0
        there = _objects(repo, clone.commits_of_data(workspace))
        superfluous = candidates - here - there
        # Listings of folders last: cut off before, the next tidying knows what else there is to delete.
        for found in sorted(superfluous, key=lambda found: found.isdir):
            odb = repo.cache.local if found.name == "md5" else repo.cache.legacy
            odb.delete(found.value)
    return len(superfluous)


def _objects(repo: Repo, commits: Iterable[str]) -> set[Any]:
    """The hashes of all that the workspace and some commits of a repository name.

    Left out are commits that DVC can't read at all, and the files of a folder whose listing the cache lacks.
    """
    used = repo.used_objs(revs=sorted(commits) or None, force=True, skip_failed=True)
    return {found for objects in used.values() for found in objects}


if __name__ == "__main__":
    entrypoint.main("tidy", run, add_workspace)
