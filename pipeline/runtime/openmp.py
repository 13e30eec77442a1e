"""How OpenMP threads, which compute for torch and numpy, wait for each other."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin; call this before torch is imported, which reads the setting.

    On a machine with other load, spinning made captioning a picture ten times slower, and training git-demo eleven
    times (two threads on two cores). How they wait changes no bit; their number does, see `pipeline.models.threads`. A
    value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
