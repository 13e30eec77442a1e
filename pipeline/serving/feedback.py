"""What people think of each version: their votes and corrections, in words, as tags in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.config.params import Params
from pipeline.data.sources.corrections import Correction
from pipeline.serving.corrections import Corrections
from pipeline.serving.votes import Tally, Vote, Votes, tallies
from pipeline.tracking import champions, registry
from pipeline.tracking.decision import CORRECTIONS, VOTES


def in_words(votes: Iterable[Vote], found: Iterable[Correction], model: str) -> dict[int, dict[str, str]]:
    """Return the tags of each version that people judged.

    Args:
        votes: those that count.
        found: the corrections that count.
        model: name of the registered model; what is about others is left out.
    """
    tags: dict[int, dict[str, str]] = {}
    for version, against in tallies(votes, model).items():
        tags.setdefault(version, {})[VOTES] = "; ".join(map(str, against))
    counts: dict[int, Counter[str]] = {}
    for one in found:
        if one.model == model and one.version is not None:
            counts.setdefault(one.version, Counter())[one.action] += 1
    for version, count in counts.items():
        judged = count["accept"] + count["edit"] + count["reject"]
        if judged:
            tags.setdefault(version, {})[CORRECTIONS] = (
                f"{count['accept']} accepted, {count['edit']} edited, {count['reject']} rejected"
                f" ({count['accept'] / judged:.0%} right)"
            )
    return tags


def publish(params: Params, without: str | None = None) -> dict[int, dict[str, str]]:
    """Bring the tags of all versions up to date with what people saved here, and return them.

    Versions about which nobody here said anything keep their tags: they may come from another workspace.

    Args:
        params: all of params.yaml.
        without: a person whose votes and corrections do not count; what only they said of a version is removed.

    Raises:
        TemporaryError: MLflow can't be reached.
    """
    model = params.register_.model
    votes, found = Votes().counting(), Corrections().counting()
    wanted = in_words(votes, found, model)
    if without is not None:
        judged = wanted.keys()
        votes, found = [one for one in votes if one.who != without], [one for one in found if one.who != without]
        wanted = {number: {} for number in judged} | in_words(votes, found, model)
    if wanted:
        from pipeline.tracking import runs

        with runs.reachable():
            store = runs.client()
            known = {version.number: version.tags for version in registry.versions_with_tags(store, model)}
            for number in wanted.keys() & known.keys():
                _tag(store, model, number, known[number], wanted[number])
    return wanted


def _tag(store: Any, model: str, number: int, known: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    stale = [key for key in (VOTES, CORRECTIONS) if key in known and key not in wanted]
    changed = {key: value for key, value in wanted.items() if known.get(key) != value}
    for key in stale:  # deleted by `corrections forget`
        registry.forget(store, model, number, key)
    if changed:
        registry.note(store, model, number, changed)
    if changed or stale:
        champions.describe(store, model, number)


def tally_rows(votes: Iterable[Vote], model: str) -> list[Tally]:
    """Return the tallies as a table: each pair of versions once, the newer version first."""
    return [tally for against in tallies(votes, model).values() for tally in against if tally.version > tally.other]
