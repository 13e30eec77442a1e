"""Record the decision about a version, and move the alias `champion`; approve a version that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.config import paths
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.params import Params
from pipeline.data.text import clean
from pipeline.runtime.entrypoint import Done
from pipeline.tracking import database, model_card, registry
from pipeline.tracking.decision import AGAINST, APPROVED_AT, APPROVED_BY, AT, DECISION, REASONS, WAITS

_MAX_NAME = 100  # characters of a person's name
_LOCK_SECONDS = 60.0


@contextmanager
def alone() -> Iterator[None]:
    """Keep other processes from moving the alias within the block.

    A workspace and its retraining share an SQLite file, so the lock is beside that. With an MLflow server, only the
    processes of this folder take turns.
    """
    from pipeline.tracking import runs

    file = database.file_of(runs.uri())
    lock = (file.parent if file else Path()) / paths.WORK / "locks" / "champion.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=_LOCK_SECONDS):
        yield


def versions(store: Any, model: str) -> list[int]:
    """Return the numbers of the registered versions.

    Raises:
        ConfigError: there are none.
    """
    numbers = registry.versions(store, model)
    if not numbers:
        raise ConfigError(f"models:/{model}: has no version in MLflow; run `dvc repro` first")
    return numbers


def record(store: Any, report: dict[str, Any]) -> None:
    """Tag both versions with the decision and its reasons.

    Args:
        store: an MLflow client, see `runs.client`.
        report: the content of reports/promote.json.
    """
    model, challenger, champion = report["model"], report["challenger"], report["champion"]
    for key in (APPROVED_BY, APPROVED_AT):  # of an earlier comparison
        registry.forget(store, model, challenger, key)
    why = {
        DECISION: report["decision"],
        REASONS: "; ".join(report["reasons"]),
        "gate.test_sha256": report["test_sha256"],
        AT: _now(),
    }
    against = {} if champion is None else {AGAINST: str(champion)}
    if champion is None:
        registry.forget(store, model, challenger, AGAINST)
    if report["decision"] == "promoted":
        against[registry.BEFORE] = str(champion)
    registry.note(store, model, challenger, {**why, **against})
    describe(store, model, challenger)
    if champion is not None and report["decision"] != WAITS:
        outcome = "replaced" if report["decision"] == "promoted" else "stays"
        registry.note(store, model, champion, {**why, DECISION: outcome, AGAINST: str(challenger)})
        describe(store, model, champion)


def crown(store: Any, model: str, number: int) -> None:
    """Move the alias to a version whose decision is recorded."""
    registry.make_champion(store, model, number)
    registry.forget(store, model, number, registry.ROLLED_BACK)
    describe(store, model, number)


def roll_back(store: Any, model: str, champion: int, before: int) -> None:
    """Move the alias back.

    Raises:
        TemporaryError: the champion changed meanwhile.
    """
    with alone():
        if (now := registry.champion(store, model)) != champion:
            raise TemporaryError(f"models:/{model}: the champion became version {now or 'none'} meanwhile; run again")
        registry.note(store, model, champion, {registry.ROLLED_BACK: _now()})
        describe(store, model, champion)
        registry.make_champion(store, model, before)


def approve(params: Params, number: int, who: str, *, dry_run: bool = False) -> Done:
    """Make a version that waits for approval the champion.

    Approving it again changes nothing: the first person stays on record.

    Args:
        params: all of params.yaml.
        number: the version.
        who: the person who approves it.
        dry_run: whether to change nothing.

    Returns:
        the last line to print, and the decision with both versions.

    Raises:
        ConfigError: there is no such version, it does not wait for approval, or the name can't be used.
        TemporaryError: MLflow can't be reached, or the champion is another one than at the comparison.
    """
    from pipeline.tracking import runs

    who = clean(who)
    if not who or len(who) > _MAX_NAME:
        raise ConfigError(f"--by: found a name of {len(who)} characters; write 1 to {_MAX_NAME}")
    model = params.register_.model
    with runs.reachable():
        store = runs.client()
        numbers = versions(store, model)
        if number not in numbers:
            raise ConfigError(
                f"--approve {number}: models:/{model} has the versions {', '.join(map(str, numbers))}; choose one"
            )
        with alone():
            return _approve(store, model, number, who, dry_run)


def _approve(store: Any, model: str, number: int, who: str, dry_run: bool) -> Done:
    tags, champion = registry.tags(store, model, number), registry.champion(store, model)
    by = tags.get(APPROVED_BY)
    report = {"model": model, "challenger": number, "champion": champion}
    if number == champion:
        line = f"version {number} is champion already" + (f", approved by {by} ({tags[APPROVED_AT]})" if by else "")
        return Done(line, {**report, "decision": "kept"})
    # An approval that was cut off before the alias moved is finished.
    cut_off = by is not None and registry.ROLLED_BACK not in tags
    if tags.get(DECISION) != WAITS and not cut_off:
        raise ConfigError(
            f"--approve {number}: models:/{model}/{number} does not wait for approval (the last decision:"
            f" {tags.get(DECISION, 'none')}); run `image-captioning promote --challenger {number}`"
        )
    against = int(tags[AGAINST]) if AGAINST in tags else None
    if against != champion:
        raise TemporaryError(
            f"--approve {number}: models:/{model}/{number} was compared with {_named(against)}, and the champion is"
            f" {_named(champion)} now; run `image-captioning promote --challenger {number}`, then approve it again"
        )
    decision = "first" if champion is None else "promoted"
    if not dry_run:
        approval = {APPROVED_BY: who, APPROVED_AT: _now()} if by is None else {}
        before = {} if champion is None else {registry.BEFORE: str(champion)}
        registry.note(store, model, number, {**approval, **before, DECISION: decision, AT: _now()})
        if champion is not None:
            why = {REASONS: tags.get(REASONS, ""), AT: _now(), DECISION: "replaced", AGAINST: str(number)}
            registry.note(store, model, champion, why)
            describe(store, model, champion)
        crown(store, model, number)
    verb = "would be" if dry_run else "is"
    instead = "the first champion" if champion is None else f"champion in place of version {champion}"
    return Done(f"version {number} {verb} {instead}, approved by {by or who}", {**report, "decision": decision})


def _named(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"


def describe(store: Any, model: str, number: int) -> None:
    """Bring the decision in the description of a version up to date with its tags."""
    version = store.get_model_version(model, str(number))
    text = model_card.description(version.description or "", dict(version.tags))
    store.update_model_version(model, str(number), text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
