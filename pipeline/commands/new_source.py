"""What commands that make a source share: which names are allowed, and letting DVC track the folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pipeline.config.errors import ConfigError, TemporaryError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # as in params.yaml


def check_name(name: str, option: str) -> None:
    """Check that a source may have a name.

    Raises:
        ConfigError: it may not; names the option.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option}: found {name[:40]!r}; use letters, digits, '_', '-' and '.', and begin with a letter or digit"
        )


def track(folder: Path) -> None:
    """Let DVC track a source's folder as it is now.

    Raises:
        TemporaryError: DVC failed.
    """
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise TemporaryError(f"{folder}: `dvc add` failed: {why}; run `image-captioning doctor`, then this again")
