"""A workspace of its own for measuring whole stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def workspace(folder: Path, changes: Mapping[str, Any]) -> Path:
    """Make `folder` a workspace with the shipped params.yaml, but for `changes` by their dotted keys."""
    shutil.copy(ROOT / "params.yaml", folder)
    for path in ("models/git-demo", "data/excluded"):
        shutil.copytree(ROOT / path, folder / path)
    set_params(folder, changes)
    return folder


def set_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a workspace's params.yaml."""
    yaml, file = YAML(), folder / "params.yaml"
    content = yaml.load(file.read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        assert last in place, f"params.yaml has no {key}"
        place[last] = value
    with file.open("w") as stream:
        yaml.dump(content, stream)


def run(folder: Path, *words: str) -> str:
    """Run this python in a workspace; gives what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
