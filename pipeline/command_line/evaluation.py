"""Commands that evaluate models: scores, the champion, training pictures, MLflow's pages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command_line.declaring import MAX_SEED, examples, execute
from pipeline.config.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config.params import Params
    from pipeline.runtime.entrypoint import Done

commands = typer.Typer()


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


@commands.command(
    help=_SCORE_HELP,
    epilog=examples(
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
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed of the bootstrap intervals.")] = 0,
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

    execute("score", work, needs_params=False)


@commands.command(
    epilog=examples(
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

    execute("promote", work, lock="promote")


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


@commands.command("trained-on", epilog=examples("trained-on photo.jpg", "trained-on *.jpg"))
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

    execute("trained-on", work)


@commands.command(epilog=examples("ui", "ui --port 5050"))
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

    execute("ui", work)
