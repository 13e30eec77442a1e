"""Look whether retraining has anything to do: a source that changed, a stage that is stale, a run that did not end.

Works in the clone. Sources at web addresses and in buckets are asked, not downloaded; local folders are compared. What
it found stands in .work/look.json.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from flows.workspace import clone
from flows.workspace.dvc_repo import opened, used_stages
from flows.workspace.sources import sources
from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, swapped_in, write_json

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

LOOK = paths.WORK / "look.json"
DONE = paths.WORK / "done.json"  # the state of the data when a retraining last came to its end


def run(params: Params, args: argparse.Namespace) -> str:
    """Tell what is new; returns the last line to print."""
    from dvc.repo import lock_repo

    with opened() as repo, lock_repo(repo):
        used = used_stages(repo)
        missing = _bring(repo, used)
        changed = [
            source
            for source in sources(repo, params, args.workspace)
            if source.has_changed() or source.addressing in missing
        ]
        stale = sorted({stage.addressing.partition("@")[0] for stage in used if stage.cmd and stage.changed()})
    ended = DONE.is_file() and read_json(DONE) == clone.data_state()
    with swapped_in(LOOK) as (place,):
        write_json(place, {"changed": [s.addressing for s in changed], "stale": stale, "ended": ended})
    if not (changed or stale) and ended:
        return f"nothing new in {', '.join(params.ingest.sources)}"
    words = [f"new: {source.addressing}" for source in changed]
    words += [f"stale: {', '.join(stale)}"] if stale else []
    return "; ".join(words) or "the last retraining did not come to its end"


def _bring(repo: Repo, stages: list[Stage]) -> set[str]:
    """Put into place what DVC's cache or a remote has of the stages' files; gives those of which some are missing."""
    from dvc.config import NoRemoteError

    if ran := [stage.addressing for stage in stages if all(out.hash_info for out in stage.outs)]:
        repo.checkout(ran, force=True, allow_missing=True)
    # What a stage makes can be made again; raw data may lie in a remote. DVC does not go below folders that git ignores
    # (models/), so the `.dvc` files of what lies there are named.
    away = {stage.addressing for stage in stages if not stage.cmd and not stage.outs[0].exists}
    for needed in {dep.fs_path for user in stages for dep in user.deps if dep.protocol == "local"}:
        if not Path(needed).exists() and Path(f"{needed}.dvc").is_file():
            away.add(str(Path(f"{needed}.dvc").relative_to(repo.root_dir)))
    if away:
        with contextlib.suppress(NoRemoteError):
            repo.pull(sorted(away), allow_missing=True)
    return {stage.addressing for stage in stages if not all(out.exists for out in stage.outs)}


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the workspace which the clone belongs to."""
    parser.add_argument("--workspace", type=Path, required=True, help="whose clone the current folder is")


if __name__ == "__main__":
    entrypoint.main("check_updates", run, add_workspace)
