"""The layout `sidecars`: a `.txt` (or `.caption`) beside each picture, with the picture's name and its captions.

Tools for training image generators write it: kohya's scripts, TagGUI, JoyCaption.
"""

from __future__ import annotations

from functools import lru_cache

from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files
from pipeline.data.sources.layout import Captions, CaptionsFile, Layout

_SUFFIXES = (".txt", ".caption")


def _recognises(files: Files, index: int) -> bool:
    member = files.members[index]
    return (member.archive, member.name.rpartition(".")[0]) in _stems(files)


@lru_cache(maxsize=1)
def _stems(files: Files) -> frozenset[tuple[str, str]]:
    """Return the zip and the path without suffix of each picture."""
    return frozenset((m.archive, m.name.rpartition(".")[0]) for m in files.members if m.suffix in SUFFIXES)


def _read(file: CaptionsFile) -> Captions:
    """Read a file; each line that is not blank is a caption."""
    encoding, lines = file.lines()
    stem = file.base.rpartition(".")[0]
    return Captions(encoding, (file.row(number, stem, line) for number, line in lines))


LAYOUT = Layout(
    name="sidecars",
    expected="a .txt beside each picture, with the picture's name",
    suffixes=_SUFFIXES,
    recognises=_recognises,
    read=_read,
)
