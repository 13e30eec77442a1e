"""`image-captioning`: the commands for people.

This module only declares arguments, one function per command, and may grow beyond 350 lines with them. Each command
imports its work when it runs, so that `--help` and shell completion answer at once, and runs it through
`entrypoint.execute`, which turns failures into one line and an exit code. Wrong usage exits with 78, like every other
wrong setting. `train`, `retrain` and `serve` become the flow's own process.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.serving.bulk_sidecars import Sidecars

if TYPE_CHECKING:
    from pipeline.config.params import Params
    from pipeline.runtime.entrypoint import Done

_NAME = "image-captioning"
_MAX_SEED = 2**32 - 1
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or a checkpoint folder."
        " Default: the champion, or the newest version if there is no champion.",
    ),
]


class Device(StrEnum):
    """Where trainings run."""

    cpu = "cpu"
    gpu = "gpu"


class Engine(StrEnum):
    """Where pictures are captioned."""

    local = "local"
    ray = "ray"


class _Commands(TyperGroup):
    """The group of commands. A usage error is one line and exit code 78."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the command line and exit."""
        options |= {"prog_name": _NAME, "standalone_mode": False}
        try:
            code = super().main(*args, **options)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else _NAME
            message = " ".join(error.format_message().split()).rstrip(".")
            print(f"{command}: {message}; see `{command} --help`", file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        except typer.Abort:  # Ctrl-C before the work began
            sys.exit(TemporaryError.exit_code)
        sys.exit(code)


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # plain text, and no import of rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _examples(*commands: str) -> str:
    # "\b" keeps the line breaks.
    return "\b\nExamples:\n" + "\n".join(f"  {_NAME} {command}" for command in commands)


def _execute(
    name: str,
    work: Callable[..., str | Done],
    lock: str | None = None,
    prints: bool = True,
    needs_params: bool = True,
) -> NoReturn:
    from pipeline.runtime import entrypoint

    raise typer.Exit(entrypoint.execute(name, work, lock=lock, prints=prints, needs_params=needs_params))


def _become_flow(flow: str, *arguments: str) -> NoReturn:
    """Replace this process with a flow's, so that signals reach it and its exit code is the command's."""
    os.execv(sys.executable, [sys.executable, "-m", f"flows.{flow}", *arguments])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{_NAME} {version(_NAME)}")
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


@app.command(
    epilog=_examples(
        "caption photo.jpg",
        "caption holiday/*.jpg --several 5",
        "caption photo.jpg --model models:/image-captioning/3",
        "caption holiday --out captions.jsonl",
        "caption holiday.zip --out texts",
        "caption holiday --out holiday --sidecars xmp",
        "caption s3://bucket/holiday --out captions.jsonl",
        "caption holiday --out captions.jsonl --engine ray",
    )
)
def caption(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Picture files; with --out, one folder, .zip or s3://BUCKET/PREFIX of them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write the captions to a .jsonl or .parquet file, or to a folder with a file per picture."
            " Run it again to continue, or for new pictures; existing captions and texts are not changed.",
        ),
    ] = None,
    model: Model = None,
    several: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Up to this many different captions per photo: twice as many are sampled, and the likeliest kept."
            " evaluate.generation has temperature, top_p and top_k.",
        ),
    ] = 1,
    sidecars: Annotated[
        Sidecars | None,
        typer.Option(
            help="With a folder as --out: write photo.txt (default) or photo.jpg.xmp for each photo.jpg."
            " Other properties in existing XMP sidecars are kept.",
            show_default=False,
        ),
    ] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="With --several: keep captions that share few words, not the likeliest.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Random seed for --several.")] = 0,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="With --out: caption in this process, or in Ray's workers, one per CPU or GPU. The output is the same."
            " Default: runtime.engine.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Caption photos with a registered model or a checkpoint."""

    def work(params: Params) -> str:
        from pipeline.commands.caption import caption_folder, caption_photos

        options: dict[str, Any] = {"model": model, "several": several, "seed": seed, "diverse": diverse}
        if out is not None:
            return caption_folder(params, photos, out, sidecars=sidecars, engine=engine, **options)
        for option, value in (("sidecars", sidecars), ("engine", engine)):
            if value is not None:
                raise ConfigError(f"--{option} {value.value}: needs --out; add it, or leave this out")
        return caption_photos(params, [Path(photo) for photo in photos], **options)

    _execute("caption", work)


@app.command(
    epilog=_examples(
        "init ~/Downloads/pictures.zip --captions ~/Downloads/captions.csv",
        "init ~/Downloads/archive.zip --name kaggle",
        "init ~/photos --captions ~/photos.xlsx --for cpu",
        "init s3://bucket/photos --captions ~/photos.csv",
    )
)
def init(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS",
            help="A folder, a .zip or a .tar of pictures; or s3://BUCKET/PREFIX, whose pictures stay there.",
            show_default=False,
        ),
    ],
    captions: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The captions, if they are not among the photos.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the source: its folder in data/raw.")] = "mine",
    for_: Annotated[
        Device | None,
        typer.Option("--for", help="Where it will be trained. Default: a GPU if this machine has one."),
    ] = None,
) -> None:
    """Set up training on your own photos: copy them, track them with DVC, and choose the checkpoint to start from.

    The choice is written into params.yaml with its reason: microsoft/git-base at its newest commit if the hub can be
    reached, else cnn-attention.
    """

    def work(params: Params) -> str:
        from pipeline.commands import init as command

        gpu = None if for_ is None else for_ == Device.gpu
        place: Path | str = photos if photos.startswith("s3://") else Path(photos).expanduser()
        return command.init(params, place, captions and captions.expanduser(), name, gpu)

    _execute("init", work)


@app.command(
    "add-bucket",
    epilog=_examples(
        "add-bucket album s3://bucket/photos",
        "add-bucket album s3://bucket/photos --captions ~/photos.csv",
        "add-bucket album",
    ),
)
def add_bucket(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its folder in data/raw.", show_default=False)],
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="s3://BUCKET/PREFIX. Default: the one that the source has."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The captions, if they are not in the bucket.", show_default=False),
    ] = None,
) -> None:
    """Make a source of pictures that stay in an S3 bucket. Run it again to list what is in the bucket now.

    DVC tracks the list (names, sizes, ETags) and a copy of the captions; the pictures stay in the bucket.
    """

    def work(params: Params) -> str:
        from pipeline.commands.add_bucket import add_bucket as add

        return add(params, name, url, captions and captions.expanduser())

    _execute("add-bucket", work, lock="add-bucket")


@app.command(
    "serve-model",
    epilog=_examples("serve-model", "serve-model --port 9000 --alias challenger", "serve-model --host 0.0.0.0"),
)
def serve_model(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8600,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on. Beyond this machine it needs IMAGE_CAPTIONING_TOKEN.")
    ] = "127.0.0.1",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the registered model. Default: register.model.")
    ] = None,
    alias: Annotated[
        str, typer.Option(help="Serve the version with this alias; without such a version, the newest one.")
    ] = "champion",
) -> None:
    """Caption pictures over HTTP. Ctrl-C ends it.

    The service follows the alias without a restart. Its address, routes and limits are in docs/serving.md.
    """

    def work(params: Params) -> str:
        from pipeline.commands.serve_model import serve_model as serve

        return serve(params, host=host, port=port, model=model, alias=alias)

    _execute("serve-model", work)


@app.command("app", epilog=_examples("app", "app --port 9000", "app --service http://127.0.0.1:8600"))
def open_app(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, show_default=False, help="Default: the first free port from 8501."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on. Beyond this machine it needs IMAGE_CAPTIONING_TOKEN.")
    ] = "127.0.0.1",
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="A running captioning service. Default: start one.")
    ] = None,
) -> None:
    """Open a web page to caption photos, review captions, browse data and promote models. Ctrl-C ends it."""

    def work(params: Params) -> str:
        from pipeline.commands.app import open_app as serve_page

        return serve_page(host, port, service)

    _execute("app", work)


_corrections = typer.Typer(cls=TyperGroup, rich_markup_mode=None, invoke_without_command=True)
app.add_typer(_corrections, name="corrections", epilog=_examples("corrections", "corrections forget ann"))


@_corrections.callback()
def corrections(context: typer.Context) -> None:
    """List the corrections that people saved on the page, or delete those of a person."""
    if context.invoked_subcommand is not None:
        return

    def work(params: Params) -> str:
        from pipeline.commands.corrections import list_corrections

        return list_corrections(params)

    _execute("corrections", work)


@app.command(epilog=_examples("votes"))
def votes() -> None:
    """Show how people voted between versions on the page, and bring the versions' tags in MLflow up to date."""

    def work(params: Params) -> str:
        from pipeline.commands.votes import show_votes

        return show_votes(params)

    _execute("votes", work)


@_corrections.command(epilog=_examples("corrections forget ann"))
def forget(
    who: Annotated[str, typer.Argument(metavar="NAME", help="The person, as listed.", show_default=False)],
) -> None:
    """Delete all corrections and votes by a person, and the pictures that no other correction needs."""

    def work(params: Params) -> str:
        from pipeline.commands.corrections import forget_corrections

        return forget_corrections(params, who)

    _execute("corrections", work)


@app.command(epilog=_examples("watch"))
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

    _execute("watch", work, lock="watch")


class AnnotationTool(StrEnum):
    """Tools that a review queue can be exported for."""

    label_studio = "label-studio"
    argilla = "argilla"


@app.command("review-queue", epilog=_examples("review-queue --format label-studio --out queue"))
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

    _execute("review-queue", work)


_SCORE_HELP = """Score captions against references: BLEU, ROUGE-L, CIDEr, METEOR and SPICE, with 95 % intervals.

Runs in any folder. METEOR and SPICE need Java and `pip install pycocoevalcap==1.2`.

\b
Predictions are JSON Lines, one picture per line, or COCO results:
  {"image_id": 42, "caption": "a dog on the beach"}
  {"image_id": 43, "captions": ["a cat", "a cat sleeps"]}
Of several captions, put the most likely first: only that one is scored.

\b
References are JSON Lines, one picture or caption per line, or COCO annotations:
  {"image_id": 42, "references": ["A dog runs by the sea.", "Dog at the beach"]}
  {"image_id": 43, "caption": "A sleeping cat"}

The id may be called image_id, id, file_name or image. The text may be called references, captions, caption or text.
Every prediction needs references; pictures without a prediction are ignored.
"""


@app.command(
    help=_SCORE_HELP,
    epilog=_examples(
        "score predictions.jsonl references.jsonl",
        "score reports/evaluate/captions.jsonl --system model",
        "score predictions.jsonl references.jsonl --json scores.json --no-java",
    ),
)
def score(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Captions from a model.", show_default=False)
    ],
    references: Annotated[
        Path | None,
        typer.Argument(metavar="[REFERENCES]", help="Captions from people. Default: PREDICTIONS contains both."),
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all scores as JSON.")] = None,
    each_path: Annotated[
        Path | None, typer.Option("--each", metavar="FILE", help="Write the scores of each picture as JSON Lines.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which system to score if PREDICTIONS has several.")
    ] = None,
    no_java: Annotated[bool, typer.Option("--no-java", help="Skip METEOR and SPICE, which are slow.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=_MAX_SEED, help="Random seed of the bootstrap intervals.")] = 0,
) -> None:
    """Score captions against references; `_SCORE_HELP` is the help text."""

    def work() -> str:
        from pipeline.commands.score import score_files

        return score_files(
            predictions,
            references,
            system=system,
            json_path=json_path,
            each_path=each_path,
            with_java=not no_java,
            seed=seed,
        )

    _execute("score", work, needs_params=False)


@app.command(
    epilog=_examples(
        "promote",
        "promote --dry-run",
        "promote --challenger 3",
        "promote --challenger 3 --force",
        "promote --approve 3",
        "promote --rollback",
    )
)
def promote(
    challenger: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="The version to compare. Default: the newest.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the decision, change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote the version even if the rule is against it.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Restore the previous champion.")] = False,
    approve: Annotated[
        int | None,
        typer.Option(min=1, metavar="VERSION", help="Make a version that waits for approval the champion."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who approves it. Default: your login name.")
    ] = None,
    unless_rolled_back: Annotated[
        bool, typer.Option("--unless-rolled-back", "--unless-taken-back", hidden=True)
    ] = False,
    since: Annotated[float, typer.Option(min=0, hidden=True)] = math.inf,
) -> None:
    """Make the newest version the champion if it is better.

    Both versions caption the same test pictures. Pictures that either one was trained on do not count. The rule is
    `promote` in params.yaml. With `promote.approval` a version may wait until a person approves it.
    """

    def work(params: Params) -> str | Done:
        from pipeline.tracking import promotion

        _check_combination(rollback=rollback, approve=approve, by=by, force=force, challenger=challenger)
        if rollback:
            return promotion.roll_back(params, dry_run=dry_run)
        if approve is not None:
            from getpass import getuser

            from pipeline.tracking import champions

            return champions.approve(params, approve, getuser() if by is None else by, dry_run=dry_run)
        return promotion.promote(
            params,
            challenger=challenger,
            unless_rolled_back=unless_rolled_back,
            since=since,
            dry_run=dry_run,
            force=force,
        )

    _execute("promote", work, lock="promote")


def _check_combination(**options: Any) -> None:
    """Refuse options of `promote` that contradict each other."""
    given = [f"--{name}" for name, value in options.items() if value not in (None, False)]
    if "--by" in given:
        given.remove("--by")
        if "--approve" not in given:
            raise ConfigError("--by: names who approves a version; use it with --approve VERSION")
    first = given[0] if given else ""
    if first in ("--rollback", "--approve") and len(given) > 1:
        raise ConfigError(f"{first}: cannot be combined with {given[1]}; use one of the two")


@app.command("trained-on", epilog=_examples("trained-on photo.jpg", "trained-on *.jpg"))
def trained_on(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...", help="Picture files, or SHA-256 hashes of them.", show_default=False),
    ],
) -> None:
    """Show which registered versions were trained on a picture or a near-duplicate.

    Near-duplicates of a hash are known only if the picture was ingested here or a version was trained on it.
    """

    def work(params: Params) -> str:
        from pipeline.tracking.trained_on import report_versions

        return report_versions(params, pictures)

    _execute("trained-on", work)


@app.command(epilog=_examples("ui", "ui --port 5050"))
def ui(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, show_default=False, help="Default: the first free port from 5000."),
    ] = None,
) -> None:
    """Browse runs and registered models in MLflow, on this machine only. Ctrl-C ends it."""

    def work(params: Params) -> str:
        from pipeline.tracking.ui import browse

        return browse(params, port)

    _execute("ui", work)


@app.command(epilog=_examples("services", "services --stores"))
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

    _execute("services", work, needs_params=False)


@app.command(epilog=_examples("backup ~/backups/monday", "backup s3://backups/monday"))
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

    _execute("backup", work, needs_params=False)


@app.command(epilog=_examples("restore ~/backups/monday", "restore s3://backups/monday"))
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

    _execute("restore", work, needs_params=False)


@app.command(epilog=_examples("status", "status --dvc", "status --json"))
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    with_dvc: Annotated[bool, typer.Option("--dvc", help="Also ask DVC which stages are stale (slower).")] = False,
) -> None:
    """Show data, model, versions, last runs and schedule, and what to do next."""

    def work() -> str | Done:
        from pipeline.commands.status import show_status

        return show_status(as_json=as_json, with_dvc=with_dvc)

    _execute("status", work, prints=False, needs_params=False)


@app.command(epilog=_examples("doctor", "doctor --dry-run"))
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

    _execute("doctor", work, needs_params=False)


@app.command(epilog=_examples("train"))
def train() -> None:
    """Bring every stage up to date as a Prefect flow, with the same result as `dvc repro`.

    Crashes, out-of-memory kills and transient errors are retried with exponential backoff.
    """
    _become_flow("train")


@app.command(epilog=_examples("retrain"))
def retrain() -> None:
    """Check the sources for new data, retrain, and promote the new model if it is better.

    Works in a clone of this workspace, on what is committed here.
    """
    _become_flow("retrain")


@app.command(epilog=_examples('serve --cron "0 3 * * 1"', 'serve --cron "30 2 * * *" --timezone Europe/Berlin'))
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


if __name__ == "__main__":
    app()
