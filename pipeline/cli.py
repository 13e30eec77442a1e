"""`image-captioning`: the commands for people.

`pipeline/command_line` declares their arguments, one function per command. Each imports its work when it runs, so that
`--help` and shell completion answer at once, and runs it through `entrypoint.execute`, which turns failures into one
line and an exit code. Wrong usage exits with 78, like every other wrong setting. `train`, `retrain` and `serve` become
the flow's own process.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pipeline.command_line import captioning, evaluation, feedback, operation, scheduling
from pipeline.command_line.declaring import NAME, Commands, examples

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # plain text, and no import of rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for theme in (captioning, feedback, evaluation, operation, scheduling):  # in the order of `--help`
    app.add_typer(theme.commands)
app.add_typer(feedback.corrections_group, name="corrections", epilog=examples("corrections", "corrections forget ann"))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{NAME} {version(NAME)}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune a captioning model on your own pictures, compare versions, and caption photos.

    Run the commands in the root of the repository. Start with `image-captioning status`.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


if __name__ == "__main__":
    app()
