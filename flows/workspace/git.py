"""Run git in the retraining's clone and in the workspace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.errors import TemporaryError

_WHO = {"NAME": "flows.retrain", "EMAIL": "flows.retrain@localhost"}
# Git sets these variables for its hooks. They would redirect git to a repository other than the folder's.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")


def git(*words: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run git and return its output.

    Raises:
        TemporaryError: git failed; the message contains git's own message.
    """
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO.items()}
    here = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", *words],  # hooks are meant for people's commits
        cwd=folder,
        env={**here, **who, "LC_ALL": "C", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TemporaryError(f"git {words[0]}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout.strip()
