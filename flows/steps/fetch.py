"""Fetch what `flows.steps.check_updates` found new, into the clone; `--undo` puts back what was there before."""

from __future__ import annotations

import argparse

from flows.steps.check_updates import LOOK, add_workspace
from flows.workspace import clone
from flows.workspace.dvc_repo import opened
from flows.workspace.sources import sources
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json


def run(params: Params, args: argparse.Namespace) -> str:
    """Fetch, or undo; returns the last line to print."""
    if args.undo:
        clone.put_aside("refused")
        clone.go_back()
        with opened() as repo:
            repo.checkout(force=True, allow_missing=True)
        return "the data, and what the stages had made of them, are as they were before"
    wanted = set(read_json(LOOK)["changed"])
    with opened() as repo:
        # They are listed before the first is fetched: DVC then reads its files anew.
        for source in [source for source in sources(repo, params, args.workspace) if source.addressing in wanted]:
            print(f"fetch: {source.addressing} ...", flush=True)
            source.fetch(repo)
    return f"{', '.join(sorted(wanted))} as of now"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument("--undo", action="store_true", help="put back what was there before")


if __name__ == "__main__":
    entrypoint.main("fetch", run, _arguments)
