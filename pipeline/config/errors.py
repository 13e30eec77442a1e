"""What can go wrong, by who can mend it; each kind has the exit code that a caller acts on.

The codes are those of BSD's sysexits.h. A message is one line: the file, the row or key, what was
found, and the mend.
"""

from __future__ import annotations


class PipelineError(Exception):
    """A failure that is explained to the user in one line, without a traceback."""

    exit_code = 70


class DataError(PipelineError):
    """What was brought in can't be used as it is (EX_DATAERR)."""

    exit_code = 65


class ConfigError(PipelineError):
    """A param or a setting is wrong (EX_CONFIG)."""

    exit_code = 78


class TemporaryError(PipelineError):
    """The same run may well succeed later (EX_TEMPFAIL)."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left; torch has exceptions of its own for that, known by their words only."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
