"""What a file of a source is: its name, the archive that it is in, and why it may not be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class MemberError(Exception):
    """A file cannot be read; `reason` is a code of `audit.FILE_REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Member:
    """A file of a source.

    Attributes:
        name: path within the zip, or within the source's folder, with `/` between folders.
        archive: path of the zip within the source's folder; "" for a file outside zips.
        refused: the reason why it is not read (`unsafe_path`, `unsafe_key`, `link`, `duplicate_name`, `encrypted`,
            `nested_archive`); None if it can be read.
    """

    name: str
    archive: str
    refused: str | None

    @property
    def base(self) -> str:
        """The name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The suffix in lower case, like ".jpg", or ""."""
        return suffix(self.name)

    @property
    def outermost(self) -> str:
        """The path within the source's folder of the zip, or of the file itself."""
        return self.archive or self.name

    @property
    def place(self) -> str:
        """The location: `images.zip:img/1.jpg`, or `img/1.jpg` for a file outside zips."""
        return f"{self.archive}:{self.name}" if self.archive else self.name


def suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, like `pathlib`, which takes seconds for a million paths.

    >>> suffix("img/one.JPG"), suffix("..jpg"), suffix(".jpg"), suffix("img.d/one")
    ('.jpg', '.jpg', '', '')
    """
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if 0 < dot < len(base) - 1 else ""


def printable(name: str) -> str:
    """Replace control characters and lone surrogates, so that tables, pages and terminals can show the name."""
    return _CONTROLS.sub("\ufffd", name.encode("utf-8", "replace").decode("utf-8"))
