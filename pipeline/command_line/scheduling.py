"""Commands that become a Prefect flow."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from pipeline.command_line.declaring import examples

commands = typer.Typer()


def _become_flow(flow: str, *arguments: str) -> NoReturn:
    """Replace this process with a flow's, so that signals reach it and its exit code is the command's."""
    os.execv(sys.executable, [sys.executable, "-m", f"flows.{flow}", *arguments])


@commands.command(epilog=examples("train"))
def train() -> None:
    """Bring every stage up to date as a Prefect flow, with the same result as `dvc repro`.

    Crashes, out-of-memory kills and transient errors are retried with exponential backoff.
    """
    _become_flow("train")


@commands.command(epilog=examples("retrain"))
def retrain() -> None:
    """Check the sources for new data, retrain, and promote the new model if it is better.

    Works in a clone of this workspace, on what is committed here.
    """
    _become_flow("retrain")


@commands.command(epilog=examples('serve --cron "0 3 * * 1"', 'serve --cron "30 2 * * *" --timezone Europe/Berlin'))
def serve(
    cron: Annotated[
        str,
        typer.Option(help='Minute, hour, day, month, weekday. "0 3 * * 1": Mondays at 3.', show_default=False),
    ],
    timezone: Annotated[str, typer.Option(help="Time zone of --cron, like Europe/Berlin.")] = "UTC",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server and pages.")] = 4200,
) -> None:
    """Retrain on a schedule and whenever the data change. Ctrl-C ends it."""
    _become_flow("serve", f"--cron={cron}", f"--timezone={timezone}", f"--port={port}")
