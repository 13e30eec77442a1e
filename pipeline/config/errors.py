"""Errors that are explained to the user in one line, each kind with its own exit code (BSD's sysexits.h).

A message names the file, the row or key, what was found, and the fix.
"""

from __future__ import annotations

import errno


class PipelineError(Exception):
    """A failure that is reported in one line, without a traceback."""

    exit_code = 70


class DataError(PipelineError):
    """The data cannot be used as they are (EX_DATAERR)."""

    exit_code = 65


class ConfigError(PipelineError):
    """A param or a setting is wrong (EX_CONFIG)."""

    exit_code = 78


class TemporaryError(PipelineError):
    """The same run may succeed later (EX_TEMPFAIL)."""

    exit_code = 75


# Safetensors, SQLite and others raise their own exceptions for it, recognisable only by their message.
_DISK_FULL = ("os error 28", "No space left on device", "disk is full")


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in _DISK_FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out. torch reports that as a RuntimeError, recognisable only by its message."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
