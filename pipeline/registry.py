"""The alias of the model in use, and what is noted with versions: MLflow's registry through a client of `tracking`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAMPION = "champion"
BEFORE = "champion_before"  # a tag: the version that was champion before this one
ROLLED_BACK = "rolled_back"  # a tag: it was champion, and was taken back


def champion(store: Any, model: str) -> int | None:
    """The version in use, if there is one."""
    from pipeline import tracking

    return tracking.version_of_alias(store, model, CHAMPION)


def tags(store: Any, model: str, version: int) -> dict[str, str]:
    """What is noted with a version."""
    return dict(store.get_model_version(model, str(version)).tags)


def note(store: Any, model: str, version: int, values: Mapping[str, str]) -> None:
    """Note something with a version, in place of what was noted under the same names."""
    for key, value in values.items():
        store.set_model_version_tag(model, str(version), key, value)


def forget(store: Any, model: str, version: int, key: str) -> None:
    """Take back what was noted with a version under a name, if anything was."""
    if key in tags(store, model, version):
        store.delete_model_version_tag(model, str(version), key)


def make_champion(store: Any, model: str, version: int) -> None:
    """Let a version be the one in use."""
    store.set_registered_model_alias(model, CHAMPION, str(version))
