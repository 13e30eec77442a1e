"""Check for updates: changed sources, stale stages, and a retraining that did not finish.

Runs in the clone. Checks whether URLs and buckets changed without downloading them; compares local folders.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from flows import causes
from flows.workspace import clone
from flows.workspace.dvc_repo import opened, used_stages
from flows.workspace.sources import sources
from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.entrypoint import Done

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

DONE = paths.WORK / "done.json"  # the state of the data when a retraining last finished


def run(params: Params, args: argparse.Namespace) -> Done:
    """Find what is new.

    The result has `changed`, the `.dvc` files of the changed sources; `stale`, the causes (`flows.causes`) of each
    stale stage; and `ended`, whether the last retraining finished with the current data.
    """
    from dvc.repo import lock_repo

    with opened() as repo, lock_repo(repo):
        used = used_stages(repo)
        missing = _bring(repo, used)
        changed = [
            source
            for source in sources(repo, params, args.workspace)
            if source.has_changed() or source.addressing in missing
        ]
        stale: dict[str, list[str]] = {}
        for stage in used:
            if stage.cmd and (found := causes.of_stage(stage)):
                name = stage.addressing.partition("@")[0]
                stale[name] = sorted({*stale.get(name, []), *found})
    ended = DONE.is_file() and read_json(DONE) == clone.data_state()
    result = {"changed": [source.addressing for source in changed], "stale": stale, "ended": ended}
    if not (changed or stale) and ended:
        return Done(f"nothing new in {', '.join(params.ingest.sources)}", result)
    lines = [f"new: {source.addressing}" for source in changed]
    lines += ["stale: " + ", ".join(f"{name} ({', '.join(found)})" for name, found in stale.items())] if stale else []
    return Done("; ".join(lines) or "the last retraining did not finish", result)


def _bring(repo: Repo, stages: list[Stage]) -> set[str]:
    """Check out the stages' files from DVC's cache or a remote. Return the stages whose files are still missing."""
    from dvc.config import NoRemoteError

    if ran := [stage.addressing for stage in stages if all(out.hash_info for out in stage.outs)]:
        repo.checkout(ran, force=True, allow_missing=True)
    # Stage outputs can be regenerated; raw data may be in a remote. DVC skips folders that git ignores (models/), so
    # name the `.dvc` files there.
    away = {stage.addressing for stage in stages if not stage.cmd and not stage.outs[0].exists}
    for needed in {dep.fs_path for user in stages for dep in user.deps if dep.protocol == "local"}:
        if not Path(needed).exists() and Path(f"{needed}.dvc").is_file():
            away.add(str(Path(f"{needed}.dvc").relative_to(repo.root_dir)))
    if away:
        with contextlib.suppress(NoRemoteError):
            repo.pull(sorted(away), allow_missing=True)
    return {stage.addressing for stage in stages if not all(out.exists for out in stage.outs)}


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--workspace`, the workspace that the clone belongs to."""
    parser.add_argument("--workspace", type=Path, required=True, help="the workspace that this clone belongs to")


if __name__ == "__main__":
    entrypoint.main("check_updates", run, add_workspace)
