"""Fetch changed sources into the clone; `--undo` restores the previous data."""

from __future__ import annotations

import argparse

from flows.steps.check_updates import add_workspace
from flows.workspace import clone
from flows.workspace.dvc_repo import opened
from flows.workspace.sources import sources
from pipeline.config.params import Params
from pipeline.runtime import entrypoint


def run(params: Params, args: argparse.Namespace) -> str:
    """Fetch the sources, or undo the last fetch. Return the last line to print."""
    if args.undo:
        clone.put_aside("refused")
        clone.go_back()
        with opened() as repo:
            repo.checkout(force=True, allow_missing=True)
        return "restored the data and the stage outputs of before"
    wanted = set(args.source)
    with opened() as repo:
        # List all sources before fetching the first: a fetch makes DVC reload its files.
        for source in [source for source in sources(repo, params, args.workspace) if source.addressing in wanted]:
            print(f"fetch: {source.addressing} ...", flush=True)
            source.fetch(repo)
    return f"fetched {', '.join(sorted(wanted))}"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", nargs="+", default=[], metavar="DVC_FILE", help="the .dvc files of the sources")
    what.add_argument("--undo", action="store_true", help="restore the data of before")


if __name__ == "__main__":
    entrypoint.main("fetch", run, _arguments)
