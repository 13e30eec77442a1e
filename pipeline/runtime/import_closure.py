"""The import closure of a module: its own file and every file of ours that it imports, directly or indirectly."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_PACKAGE = "pipeline"
# Folders whose code decides no result: no stage of dvc.yaml names them.
INFRASTRUCTURE = ("pipeline/config", "pipeline/runtime", "pipeline/engine", "pipeline/tracking", "pipeline/serving")


def deciding(module: str) -> list[Path]:
    """Return the files that can change a module's result: its `closure` without the infrastructure."""
    folders = [Path(folder) for folder in INFRASTRUCTURE]
    return [file for file in closure(module) if not any(file.is_relative_to(folder) for folder in folders)]


def closure(module: str) -> list[Path]:
    """Return the files below `pipeline/` that `module` (like `pipeline.build`) imports, itself included, sorted.

    They are read from the source, so imports inside functions count. `__init__.py` files hold no code and are left
    out. Paths are relative to the root of the repository.
    """
    root = Path(__file__).parents[2]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = root.joinpath(*name.split(".")).with_suffix(".py")
        if name in found or not file.is_file():
            continue
        found[name] = file.relative_to(root)
        waiting += _imported(file.read_text(encoding="utf-8"))
    return sorted(found.values())


@cache
def _imported(source: str) -> tuple[str, ...]:
    """Return what may be a module of ours among the names that a source imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith(f"{_PACKAGE}.")]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _PACKAGE:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
