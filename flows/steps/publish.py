"""Publish what a retraining made: its data in DVC's remote, and the files that name them as a commit on a branch.

Works in the clone. The commit is of the clone's repository; the workspace gets it as a branch `retrain/DATE` where
`retrain.publish` says so. Nothing that is checked out there changes. What was made stands in .work/published.json.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from flows.workspace import clone
from flows.workspace.dvc_repo import opened, used_stages
from pipeline.config import paths
from pipeline.config.errors import TemporaryError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import swapped_in, write_json

PUBLISHED = paths.WORK / "published.json"
FOLDER = "retrain"  # begins the names of the branches


def run(params: Params, args: argparse.Namespace) -> str:
    """Publish; returns the last line to print."""
    pushed = _push() if params.retrain.publish else None
    commit, branch = clone.commit(f"{FOLDER}/{datetime.now(UTC):%Y-%m-%d}", args.message)
    if branch and params.retrain.publish:
        clone.publish(branch)
    with swapped_in(PUBLISHED) as (place,):
        write_json(place, {"branch": branch or "none", "commit": commit})
    where = f"pushed to DVC's remote {pushed}" if pushed else "only DVC's cache has the data: it has no default remote"
    if branch is None:
        return f"the commit {commit[:12]} of this repository has it already; {where}"
    if not params.retrain.publish:
        return f"retrain.publish is off; the commit {commit[:12]} stays in the clone ({clone.FOLDER})"
    return f"the branch {branch} of this repository has it, commit {commit[:12]}; {where}"


def _push() -> str | None:
    """Push the data to DVC's default remote, if there is one; gives its name."""
    from dvc.exceptions import DvcException

    with opened() as repo:
        remote = repo.config["core"].get("remote")
        if remote:
            try:
                repo.push([stage.addressing for stage in used_stages(repo)])
            except DvcException:
                raise
            except Exception as error:  # each kind of storage has exceptions of its own
                raise TemporaryError(f"DVC's remote {remote}: {type(error).__name__}: {error}; run again") from None
        return str(remote) if remote else None


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--message", required=True, help="of the commit")


if __name__ == "__main__":
    entrypoint.main("publish", run, _arguments)
