"""Bring what a run in the clone needs and git does not track: DVC's settings, excluded pictures, a checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.workspace.dvc_repo import in_words
from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.runtime.atomic_files import remove


def bring(workspace: Path, params: Mapping[str, Any]) -> None:
    """Bring them from the workspace into the clone, which is the current folder.

    Raises:
        ConfigError: DVC's config can't be read, or an excluded folder is outside the workspace.
        TemporaryError: the checkpoint can't be fetched.
    """
    _configure_dvc(workspace)
    _bring_excluded(workspace, params)
    _bring_checkpoint(workspace, params)


def _configure_dvc(workspace: Path) -> None:
    """Configure the clone with the cache, remotes and settings that the workspace has on this machine."""
    from dvc.config import Config, merge
    from dvc.config import ConfigError as BadDvcConfig

    theirs: dict[str, Any] = {}
    try:
        there = Config(str(workspace / ".dvc"), validate=False)
        for level in ("repo", "local"):
            merge(theirs, there.load_one(level))
        cache = there.read()["cache"].get("dir")  # may be set for the whole machine
    except BadDvcConfig as error:
        raise ConfigError(f"{workspace / '.dvc'}: DVC can't read its config there: {in_words(error)}") from None
    theirs.setdefault("cache", {})["dir"] = cache or str(workspace / ".dvc" / "cache")
    place = Path(".dvc/config.local")
    place.unlink(missing_ok=True)
    place.touch(mode=0o600)  # it may contain a remote's credentials
    with Config(".dvc", validate=False).edit("local") as mine:
        mine.update(theirs)


def _bring_excluded(workspace: Path, params: Mapping[str, Any]) -> None:
    for name in (params.get("ingest") or {}).get("exclude") or []:
        there = workspace / name
        if there.is_dir() and not Path(name).is_absolute():
            if ".." in Path(name).parts:  # otherwise the excluded pictures would be used
                raise ConfigError(f"params.yaml: ingest.exclude: {name} leads out of here; name its whole path")
            remove(Path(name))
            shutil.copytree(there, name)


def _bring_checkpoint(workspace: Path, params: Mapping[str, Any]) -> None:
    """Bring the checkpoint that params name; every later check needs it."""
    name = str((params.get("finetune") or {}).get("checkpoint", ""))
    if not name or Path(name).exists():
        return
    if Path(name).is_symlink():  # points to where the workspace was before it was moved
        Path(name).unlink()
    if Path(f"{name}.dvc").is_file():
        words = [str(Path(sys.executable).with_name("dvc")), "pull", "--quiet", f"{name}.dvc"]
        quiet = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(words, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TemporaryError(f"{name}: can't be brought by DVC: {' '.join(done.stderr.split())}")
    elif (workspace / name).is_dir():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to((workspace / name).resolve())
