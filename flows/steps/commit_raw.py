"""Commit the raw data: update each `.dvc` file that the stages depend on, as `dvc repro` does.

A flow that runs the stages one by one then trains on one state of data/raw, whatever arrives meanwhile. The stages that
are stale now are written to .work/settled.json.
"""

from __future__ import annotations

import argparse

from flows.workspace.dvc_repo import opened, used_stages
from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import swapped_in, write_json

SETTLED = paths.WORK / "settled.json"


def run(params: Params, args: argparse.Namespace) -> str:
    """Bring the `.dvc` files up to date; returns the last line to print."""
    from dvc.repo import lock_repo

    with opened() as repo, lock_repo(repo):
        used = used_stages(repo)
        raw = [stage for stage in used if not stage.cmd]
        changed = [stage.addressing for stage in raw if stage.changed()]
        if changed:
            repo.reproduce(targets=changed)
        # `ingest@NAME` is of the stage `ingest`.
        stale = sorted({stage.addressing.partition("@")[0] for stage in used if stage.cmd and stage.changed()})
    with swapped_in(SETTLED) as (place,):
        write_json(place, {"stale": stale})
    return (
        f"{len(raw)} .dvc files, of which {len(changed)} were brought up to date; stale:"
        f" {', '.join(stale) or 'no stage'}"
    )


if __name__ == "__main__":
    entrypoint.main("commit_raw", run)
