"""Which registered version captions: the one with an alias, else the newest; and which one challenges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHALLENGER = "challenger"  # an alias


@dataclass(frozen=True)
class Choice:
    """A chosen version.

    Attributes:
        name: name of the registered model.
        version: number of the version.
        alias: the alias that led to it; None for the newest version.
        why: the reason in words, like "the champion".
    """

    name: str
    version: int
    alias: str | None
    why: str

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


def choose(store: Any, name: str, alias: str) -> Choice | None:
    """Return the version with the alias, else the newest version, or None if the model has no versions.

    Args:
        store: an MLflow client, see `runs.client`.
        name: name of the registered model.
        alias: an alias, like `champion`.
    """
    from pipeline.tracking import registry

    version = registry.version_of_alias(store, name, alias)
    if version is not None:
        return Choice(name, version, alias, f"the {alias}")
    numbers = registry.versions(store, name)
    if not numbers:
        return None
    return Choice(name, numbers[-1], None, f"the newest version: there is no {alias}")


def choose_challenger(store: Any, name: str, alias: str) -> Choice | None:
    """Return the version to compare with the served one, or None.

    It is the version with the alias `challenger`, else the newest one if it is newer than the served version and was
    not rolled back.

    Args:
        store: an MLflow client, see `runs.client`.
        name: name of the registered model.
        alias: the alias of the served version.
    """
    from pipeline.tracking import registry

    served = choose(store, name, alias)
    if served is None:
        return None
    named = registry.version_of_alias(store, name, CHALLENGER)
    if named is not None:
        return Choice(name, named, CHALLENGER, f"the {CHALLENGER}") if named != served.version else None
    newer = [
        version.number
        for version in registry.versions_with_tags(store, name)
        if version.number > served.version and registry.ROLLED_BACK not in version.tags
    ]
    return Choice(name, newer[-1], None, "the newest version") if newer else None
