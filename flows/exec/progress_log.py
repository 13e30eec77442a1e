"""A stage's progress bars (`pipeline.runtime.progress`), as they are read along."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_BAR = re.compile(r"(?P<name>[^:]+): +(?P<percent>\d+)% \d")


def percent(line: str) -> tuple[str, int] | None:
    """The name and the percentage of a bar, if the line is one."""
    found = _BAR.match(line)
    return (found["name"], int(found["percent"])) if found else None


class Throttled:
    """Passes lines on; of bars the first, the last, and one now and then.

    Args:
        tell: is given the lines.
        show: is given each bar's name, percentage and line.
        seconds: between two lines of the same bar.
    """

    def __init__(self, tell: Callable[[str], None], show: Callable[[str, int, str], None], seconds: float) -> None:
        self._tell, self._show, self._seconds = tell, show, seconds
        self._told: dict[str, tuple[int, float]] = {}

    def __call__(self, line: str) -> None:
        """Pass a line on, or not."""
        found = percent(line)
        if found is None:
            self._tell(line)
            return
        name, done = found
        self._show(name, done, line)
        now = time.monotonic()
        before, then = self._told.get(name, (-1, -self._seconds))
        if done != before and (done == 100 or now - then >= self._seconds):
            self._told[name] = done, now
            self._tell(line)
