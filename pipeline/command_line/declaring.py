"""What all declarations of commands share: usage errors, examples in the help, and how a command runs its work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.config.errors import ConfigError, TemporaryError

if TYPE_CHECKING:
    from pipeline.runtime.entrypoint import Done

NAME = "image-captioning"
MAX_SEED = 2**32 - 1
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or a checkpoint folder."
        " Default: the champion, or the newest version if there is no champion.",
    ),
]


class Commands(TyperGroup):
    """The group of commands. A usage error is one line and exit code 78."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the command line and exit."""
        options |= {"prog_name": NAME, "standalone_mode": False}
        try:
            code = super().main(*args, **options)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else NAME
            message = " ".join(error.format_message().split()).rstrip(".")
            print(f"{command}: {message}; see `{command} --help`", file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        except typer.Abort:  # Ctrl-C before the work began
            sys.exit(TemporaryError.exit_code)
        sys.exit(code)


def examples(*commands: str) -> str:
    """Return the examples below the help of a command, given without `image-captioning`."""
    # "\b" keeps the line breaks.
    return "\b\nExamples:\n" + "\n".join(f"  {NAME} {command}" for command in commands)


def execute(
    name: str,
    work: Callable[..., str | Done],
    lock: str | None = None,
    prints: bool = True,
    needs_params: bool = True,
) -> NoReturn:
    """Run the work of a command, and end it with its exit code; see `entrypoint.execute`."""
    from pipeline.runtime import entrypoint

    raise typer.Exit(entrypoint.execute(name, work, lock=lock, prints=prints, needs_params=needs_params))
