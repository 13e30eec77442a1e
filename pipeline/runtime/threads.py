"""How threads of the numeric libraries wait for each other."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin; call this before torch is imported.

    Beside other busy processes, spinning threads made captioning a picture ten times slower on two cores. A value that
    the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
