"""Find why stages are stale (data, params, code) and whether to retrain for that (`retrain.on_code_change`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dvc.stage import Stage

Cause = Literal["data", "params", "code", "outputs"]  # outputs: outputs are missing, or the stage never ran
CODE = "pipeline"  # the folder with the code that affects results
_RETRAINS: dict[str, set[str]] = {
    "all": {"data", "outputs", "params", "code"},
    "params": {"data", "outputs", "params"},
    "none": {"data", "outputs"},
}


def of_stage(stage: Stage) -> list[Cause]:
    """Return why a stage is stale; empty if it is up to date. Stale upstream stages do not count."""
    from dvc.dependency import ParamsDependency

    if not stage.changed():
        return []
    if not any(out.hash_info for out in stage.outs):  # dvc.lock has no entry
        return ["outputs"]
    causes: set[Cause] = set()
    for dependency in stage.deps:
        if dependency.status():
            if isinstance(dependency, ParamsDependency):
                causes.add("params")
            else:
                causes.add("code" if Path(dependency.def_path).parts[0] == CODE else "data")
    for out in stage.outs:
        if not out.hash_info:  # dvc.yaml names a new output
            causes.add("code")
        elif out.status():
            causes.add("outputs")
    return sorted(causes) or ["code"]  # the command in dvc.yaml


def no_reason(stale: Mapping[str, Sequence[str]], on_code_change: str) -> str | None:
    """Return in one line why stale stages do not require a retraining, or None if they do.

    Args:
        stale: the causes of each stale stage.
        on_code_change: `retrain.on_code_change`.

    >>> no_reason({"build": ["code"], "finetune": ["params"]}, "params") is None
    True
    """
    causes = {cause for found in stale.values() for cause in found}
    if not causes or causes & _RETRAINS[on_code_change]:
        return None
    wanted = "all" if "code" in causes else "params"
    return (
        f"nothing new: only {' and '.join(sorted(causes))} changed (stale: {', '.join(stale)}); to retrain, set"
        f" retrain.on_code_change to {wanted} or run `image-captioning train`"
    )


def of_retraining(updates: Mapping[str, Any]) -> str:
    """Return what changed, like `code, data`; `updates` is the result of `flows.steps.check_updates`."""
    found = {cause for causes in updates["stale"].values() for cause in causes}
    if updates["changed"]:
        found.add("data")
    return ", ".join(sorted(found)) or ("nothing" if updates["ended"] else "unfinished")
