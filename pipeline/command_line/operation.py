"""Commands that operate a workspace or a deployment: servers, backups, status, repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command_line.declaring import examples, execute

if TYPE_CHECKING:
    from pipeline.runtime.entrypoint import Done

commands = typer.Typer()


@commands.command(epilog=examples("services", "services --stores"))
def services(
    stores: Annotated[
        bool, typer.Option("--stores", help="Leave out MLflow and Prefect, for `image-captioning restore`.")
    ] = False,
) -> None:
    """Run PostgreSQL, an S3 store, and MLflow's and Prefect's servers on them, on this machine only. Ctrl-C ends them.

    Their data stay in .work/services. docs/operations.md says how to use them.
    """

    def work() -> str:
        from pipeline.deployment.services import serve as serve_all

        return serve_all(only_stores=stores)

    execute("services", work, needs_params=False)


@commands.command(epilog=examples("backup ~/backups/monday", "backup s3://backups/monday"))
def backup(
    target: Annotated[
        str, typer.Argument(metavar="PLACE", help="A new folder, or s3://BUCKET/PREFIX.", show_default=False)
    ],
) -> None:
    """Back up MLflow's and Prefect's databases, MLflow's files, DVC's files, corrections and the git repository.

    Servers may go on working. Retrainings wait. docs/operations.md says what is backed up.
    """

    def work() -> str:
        from pipeline.deployment.backup import back_up

        return back_up(target)

    execute("backup", work, needs_params=False)


@commands.command(epilog=examples("restore ~/backups/monday", "restore s3://backups/monday"))
def restore(
    source: Annotated[
        str, typer.Argument(metavar="PLACE", help="A backup: a folder, or s3://BUCKET/PREFIX.", show_default=False)
    ],
) -> None:
    """Restore a backup into an empty deployment.

    Checks all hashes first, and overwrites nothing.
    """

    def work() -> str:
        from pipeline.deployment.backup import restore as restore_all

        return restore_all(source)

    execute("restore", work, needs_params=False)


@commands.command(epilog=examples("status", "status --dvc", "status --json"))
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    with_dvc: Annotated[bool, typer.Option("--dvc", help="Also ask DVC which stages are stale (slower).")] = False,
) -> None:
    """Show data, model, versions, last runs and schedule, and what to do next."""

    def work() -> str | Done:
        from pipeline.commands.status import show_status

        return show_status(as_json=as_json, with_dvc=with_dvc)

    execute("status", work, prints=False, needs_params=False)


@commands.command(epilog=examples("doctor", "doctor --dry-run"))
def doctor(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show; exit with 65 if there is a fault.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing if there is nothing to fix.")] = False,
) -> None:
    """Fix what kills, full disks and moves left: locks, torn files, dead runs, a damaged mlflow.db.

    Touches nothing that a running process holds. What may be your work is moved to .work/doctor, never deleted.
    """

    def work() -> str:
        from pipeline.commands.doctor import examine

        return examine(dry_run=dry_run, quiet=quiet)

    execute("doctor", work, needs_params=False)
