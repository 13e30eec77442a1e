"""Commands about what people and the service saw: corrections, votes, drift, and queues to review."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from pipeline.command_line.declaring import Model, examples, execute

if TYPE_CHECKING:
    from pipeline.config.params import Params
    from pipeline.runtime.entrypoint import Done

commands = typer.Typer()
corrections_group = typer.Typer(cls=TyperGroup, rich_markup_mode=None, invoke_without_command=True)


@corrections_group.callback()
def corrections(context: typer.Context) -> None:
    """List the corrections that people saved on the page, or delete those of a person."""
    if context.invoked_subcommand is not None:
        return

    def work(params: Params) -> str:
        from pipeline.commands.corrections import list_corrections

        return list_corrections(params)

    execute("corrections", work)


@commands.command(epilog=examples("votes"))
def votes() -> None:
    """Show how people voted between versions on the page, and bring the versions' tags in MLflow up to date."""

    def work(params: Params) -> str:
        from pipeline.commands.votes import show_votes

        return show_votes(params)

    execute("votes", work)


@corrections_group.command(epilog=examples("corrections forget ann"))
def forget(
    who: Annotated[str, typer.Argument(metavar="NAME", help="The person, as listed.", show_default=False)],
) -> None:
    """Delete all corrections and votes by a person, and the pictures that no other correction needs."""

    def work(params: Params) -> str:
        from pipeline.commands.corrections import forget_corrections

        return forget_corrections(params, who)

    execute("corrections", work)


@commands.command(epilog=examples("watch"))
def watch() -> None:
    """Show whether the pictures and captions of the service have drifted from the data set, week by week.

    The service records them if `serving.watch` is true. Exits with 0 also if there is an alarm. A new alarm is sent to
    Prefect as the event image-captioning.drift, if a server is at hand.
    """

    def work(params: Params) -> str | Done:
        from pipeline.commands.watch import watch as compare

        done = compare(params)
        if any(week["alarms"] for week in done.result["weeks"]):
            sys.stdout.flush()
            # In a process of its own, because only flows import Prefect. Its failure must not lose the report.
            subprocess.run([sys.executable, "-m", "flows.steps.drift_event"], check=False)
        return done

    execute("watch", work, lock="watch")


class AnnotationTool(StrEnum):
    """Tools that a review queue can be exported for."""

    label_studio = "label-studio"
    argilla = "argilla"


@commands.command("review-queue", epilog=examples("review-queue --format label-studio --out queue"))
def review_queue(
    format_: Annotated[
        AnnotationTool, typer.Option("--format", help="The tool that people annotate with.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures, at most.")] = 100,
    model: Model = None,
) -> None:
    """Export the pictures that the model is least sure of, with its captions, for Label Studio or Argilla.

    Pictures that somebody has reviewed on the page are left out.
    """

    def work(params: Params) -> str:
        from pipeline.commands.caption import find
        from pipeline.serving.review_export import export

        return export(params, format_.value, out, count, lambda: find(params, "review-queue", model))

    execute("review-queue", work)
