"""Parse a stage's progress bars (`pipeline.runtime.progress`) and limit how often they are logged."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_BAR = re.compile(r"(?P<name>[^:]+): +(?P<percent>\d+)% \d")


def percent(line: str) -> tuple[str, int] | None:
    """Return the name and the percentage of a progress bar; None if the line is not one."""
    found = _BAR.match(line)
    return (found["name"], int(found["percent"])) if found else None


class Throttled:
    """Forward lines. From each progress bar, forward the first and last line and one per interval.

    Args:
        log: receives the forwarded lines.
        show: receives the name, percentage and line of every bar.
        seconds: the minimum interval between two lines of the same bar.
    """

    def __init__(self, log: Callable[[str], None], show: Callable[[str, int, str], None], seconds: float) -> None:
        self._log, self._show, self._seconds = log, show, seconds
        self._logged: dict[str, tuple[int, float]] = {}

    def __call__(self, line: str) -> None:
        """Forward a line, unless it is a progress bar within the interval."""
        found = percent(line)
        if found is None:
            self._log(line)
            return
        name, done = found
        self._show(name, done, line)
        now = time.monotonic()
        before, then = self._logged.get(name, (-1, -self._seconds))
        if done != before and (done == 100 or now - then >= self._seconds):
            self._logged[name] = done, now
            self._log(line)
