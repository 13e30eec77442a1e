"""Commit the raw data to DVC: update each `.dvc` file that the stages depend on, as `dvc repro` does.

The flow runs the stages one by one. After this step they all use the same state of data/raw, whatever arrives
meanwhile. The result has the stages that are stale now.
"""

from __future__ import annotations

import argparse

from flows.workspace.dvc_repo import opened, used_stages
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.entrypoint import Done


def run(params: Params, args: argparse.Namespace) -> Done:
    """Update the `.dvc` files. The result has the names of the stages that are stale now."""
    from dvc.repo import lock_repo

    with opened() as repo, lock_repo(repo):
        used = used_stages(repo)
        raw = [stage for stage in used if not stage.cmd]
        changed = [stage.addressing for stage in raw if stage.changed()]
        if changed:
            repo.reproduce(targets=changed)
        # `ingest@NAME` is the stage `ingest` for one source.
        stale = sorted({stage.addressing.partition("@")[0] for stage in used if stage.cmd and stage.changed()})
    line = f"updated {len(changed)} of {len(raw)} .dvc files; stale stages: {', '.join(stale) or 'none'}"
    return Done(line, {"stale": stale})


if __name__ == "__main__":
    entrypoint.main("commit_raw", run)
