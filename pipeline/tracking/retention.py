"""Registered model versions of retrainings: the next start, the commit that references their data, and retention.

    python -m pipeline.tracking.retention close-dead-runs
    python -m pipeline.tracking.retention start
    python -m pipeline.tracking.retention tag-version --commit COMMIT --branch BRANCH --since SECONDS
    python -m pipeline.tracking.retention delete-old-versions --keep 8

* `close-dead-runs` closes the MLflow runs of trainings that died.
* `start` returns the checkpoint to start from: the champion, or `finetune.checkpoint` without a champion.
* `tag-version` tags the version of this workspace's model with the commit of its data. If the version was created at or
  after SECONDS, it is also tagged as made by a retraining; a version that a person registered earlier is not.
* `delete-old-versions` deletes old versions made by retrainings, with their files. It keeps the newest, those with an
  alias, and the version that a rollback would restore. MLflow runs and their metrics stay. Returns the commits of the
  kept versions.
"""

from __future__ import annotations

import argparse

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.entrypoint import Done
from pipeline.tracking import deletion, registry

COMMIT, BRANCH = "retrain.commit", "retrain.branch"  # tags of every version that a retraining handled
MADE = "retrain.made"  # tag of versions that a retraining registered


def run(params: Params, args: argparse.Namespace) -> str | Done:
    """Run the subcommand `args.what`."""
    from pipeline.tracking import runs

    with runs.reachable():
        if args.what == "close-dead-runs":
            return _close_dead_runs(params)
        if args.what == "start":
            return _start(params)
        if args.what == "tag-version":
            return _tag_version(args.commit, args.branch, args.since)
        return _delete_old_versions(params, args.keep)


def _close_dead_runs(params: Params) -> str:
    from pipeline.tracking import runs

    store = runs.client()
    closed = runs.close_dead_runs(store, runs.experiment(store, params.register_.experiment))
    return f"closed MLflow runs whose process died: {', '.join(closed) or 'none'}"


def _start(params: Params) -> Done:
    from pipeline.tracking import runs

    name = params.register_.model
    number = registry.champion(runs.client(), name)
    checkpoint = f"models:/{name}/{number}" if number else params.finetune.checkpoint
    return Done(f"training starts from {checkpoint}" + ("" if number else f"; {name} has no champion yet"), checkpoint)


def _tag_version(commit: str, branch: str, since: float) -> str:
    from pipeline.tracking import runs

    store = runs.client()
    registered = read_json(paths.REGISTER_REPORT)
    name = registered["model"]
    version = registry.find_version(store, name, registered["model_sha256"])
    if version is None:
        raise DataError(f"{name}: the registry does not have the model of {paths.MODEL}; run `make register`")
    made = {MADE: "true"} if version.created >= since else {}
    registry.note(store, name, version.number, {COMMIT: commit, BRANCH: branch, **made})
    return f"models:/{name}/{version.number} is tagged with the commit {commit[:12]} of its data"


def _delete_old_versions(params: Params, keep: int) -> Done:
    from pipeline.tracking import runs

    store, name = runs.client(), params.register_.model
    named = registry.aliased(store, name)
    if champion := registry.champion(store, name):
        before = registry.tags(store, name, champion).get(registry.BEFORE)
        named |= {int(before)} if before else set()
    noted = [version for version in registry.versions_with_tags(store, name) if COMMIT in version.tags]
    ours = [version for version in noted if MADE in version.tags]
    newest = {version.number for version in ours[-keep:]}
    old = [version for version in ours if version.number not in newest | named]
    for version in old:
        deletion.delete_version(store, name, version.number)
    orphans = deletion.orphaned_models(store, runs.experiment(store, params.register_.experiment), of_a_day=True)
    for logged in orphans:
        deletion.delete_logged_model(store, logged.model_id)
    kept = [version for version in ours if version not in old]
    commits = [version.tags[COMMIT] for version in noted if version not in old]
    return Done(
        f"deleted {len(old)} versions of {name} and {len(orphans)} models without a version; kept {len(kept)} versions"
        f" of retrainings ({', '.join(str(version.number) for version in kept) or 'none'})",
        {"commits": commits},
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("close-dead-runs", help="close the runs of trainings that died")
    commands.add_parser("start", help="return the checkpoint to start from")
    tag = commands.add_parser(
        "tag-version", help="tag the version of this workspace's model with the commit of its data"
    )
    tag.add_argument("--commit", required=True)
    tag.add_argument("--branch", required=True)
    tag.add_argument("--since", type=float, required=True, help="when the retraining began, in seconds since 1970")
    delete = commands.add_parser(
        "delete-old-versions", help="delete old versions that retrainings made and that have no alias"
    )
    delete.add_argument("--keep", type=int, required=True, help="the number of newest versions to keep besides those")


if __name__ == "__main__":
    entrypoint.main("retention", run, _arguments)
