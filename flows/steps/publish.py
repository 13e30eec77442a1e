"""Publish the results of a retraining: push data to DVC's remote, and commit `dvc.lock` and `.dvc` files to a branch.

Runs in the clone and commits to its repository. With `retrain.publish`, the workspace receives the commit as a branch
`retrain/DATE`; its checked-out files do not change. The result has the commit and the branch.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from flows.workspace import clone
from flows.workspace.dvc_repo import opened, used_stages
from pipeline.config.errors import TemporaryError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.entrypoint import Done

FOLDER = "retrain"  # prefix of the branch names


def run(params: Params, args: argparse.Namespace) -> Done:
    """Push the data, commit, and publish the branch."""
    pushed = _push() if params.retrain.publish else None
    commit, branch = clone.commit(f"{FOLDER}/{datetime.now(UTC):%Y-%m-%d}", args.message)
    if branch and params.retrain.publish:
        clone.publish(branch)
    where = f"data pushed to DVC's remote {pushed}" if pushed else "no default DVC remote: data are in DVC's cache only"
    if branch is None:
        line = f"commit {commit[:12]} of this repository has these data already; {where}"
    elif not params.retrain.publish:
        line = f"retrain.publish is off; commit {commit[:12]} stays in the clone ({clone.FOLDER})"
    else:
        line = f"branch {branch}, commit {commit[:12]}; {where}"
    return Done(line, {"branch": branch or "none", "commit": commit})


def _push() -> str | None:
    """Push the data to DVC's default remote and return its name; None if there is no default remote."""
    from dvc.exceptions import DvcException

    with opened() as repo:
        remote = repo.config["core"].get("remote")
        if remote:
            try:
                repo.push([stage.addressing for stage in used_stages(repo)])
            except DvcException:
                raise
            except Exception as error:  # each kind of storage raises its own exceptions
                raise TemporaryError(f"DVC's remote {remote}: {type(error).__name__}: {error}; run again") from None
        return str(remote) if remote else None


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--message", required=True, help="message of the commit")


if __name__ == "__main__":
    entrypoint.main("publish", run, _arguments)
