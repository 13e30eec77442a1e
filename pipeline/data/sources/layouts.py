"""The layouts of captions files, and finding and reading a source's captions with them.

A source has one layout, but may have several captions files of it, in any folder or zip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.config.errors import DataError
from pipeline.data.sources import (
    argilla,
    coco,
    corrections,
    flickr,
    imagefolder,
    instagram_export,
    karpathy,
    label_studio,
    parquet_table,
    sidecars,
    table,
    workbook,
)
from pipeline.data.sources.archive import Files
from pipeline.data.sources.delimited import Columns, is_captions
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout
from pipeline.data.sources.member import Member, MemberError

_MAX_CAPTIONS_BYTES = 2**30
# One more than 50 for each of the 100,000 words that `build.captions.max_words` can allow, so build sets it aside.
_MAX_CAPTION_CHARACTERS = 5_000_001

# Order matters: the first layout that recognises a file reads it. To add a layout, write a module with a `LAYOUT` and
# list it here, before any more general layout.
LAYOUTS: list[Layout] = [
    corrections.LAYOUT,
    imagefolder.LAYOUT,
    coco.LAYOUT,
    karpathy.LAYOUT,
    instagram_export.LAYOUT,
    flickr.TOKENS,
    flickr.TABLE,
    sidecars.LAYOUT,
    label_studio.LAYOUT,
    argilla.LAYOUT,
    workbook.LAYOUT,
    parquet_table.LAYOUT,
    table.LAYOUT,
]


def is_resource_fork(member: Member) -> bool:
    """Return whether a file is macOS metadata in a zip: it has the name of a real file, but not its content."""
    return member.base.startswith("._") or "__MACOSX/" in member.name


def find_captions_files(files: Files, columns: Columns) -> dict[int, Layout]:
    """Return the index of each captions file among the members, with its layout.

    Of several files the tables without a picture column and a caption column (`columns`) are left alone.

    Raises:
        DataError: there is no captions file, or they are of several layouts; lists what was found.
    """
    suffixes = tuple({suffix for layout in LAYOUTS for suffix in layout.suffixes})
    found: dict[int, Layout] = {}
    for index, member in enumerate(files.members):
        if member.base.lower().endswith(suffixes) and not is_resource_fork(member):
            layout = _recognise(files, index)
            if layout:
                found[index] = layout
    if not found:
        *expected, last = (layout.expected for layout in reversed(LAYOUTS))
        raise DataError(
            f"{files.folder}: found {_summary(files.members)}, but no captions;"
            f" expected {', '.join(expected)}, or {last}"
        )
    if len(found) > 1:
        found = {
            index: layout for index, layout in found.items() if _is_captions(files, index, layout, columns)
        } or found
    others = {index: layout for index, layout in found.items() if layout is not sidecars.LAYOUT}
    found = others or found  # texts beside the pictures are notes if there are captions in another layout
    if len({layout.name for layout in found.values()}) > 1:
        seen = ", ".join(f"{files.members[index].place} ({layout.name})" for index, layout in list(found.items())[:8])
        raise DataError(
            f"{files.folder}: has captions files of several layouts: {seen}; keep those of one layout, and move the"
            " others to sources of their own"
        )
    return found


def _is_captions(files: Files, index: int, layout: Layout, columns: Columns) -> bool:
    """Return whether a file has captions; only those that are recognised by their suffix alone may have none."""
    if layout not in (table.LAYOUT, parquet_table.LAYOUT):
        return True
    try:
        data = files.read(index, _MAX_CAPTIONS_BYTES)
        if layout is parquet_table.LAYOUT:
            return parquet_table.is_captions(data, columns)
        return is_captions(data, files.members[index].place, columns)
    except MemberError:
        return True  # `read_captions` says why it cannot be read


def _recognise(files: Files, index: int) -> Layout | None:
    base = files.members[index].base.lower()
    return next((one for one in LAYOUTS if base.endswith(one.suffixes) and one.recognises(files, index)), None)


def _summary(members: Sequence[Member]) -> str:
    """Count the files by suffix, for a message."""
    if not members:
        return "no files"
    by_suffix: dict[str, list[str]] = {}
    for member in members:
        by_suffix.setdefault(member.suffix or "no suffix", []).append(member.place)
    most_frequent = sorted(by_suffix.items(), key=lambda entry: -len(entry[1]))[:6]
    return ", ".join(f"{len(places):,} {suffix} (like {places[0]})" for suffix, places in most_frequent)


def read_captions(files: Files, index: int, layout: Layout, columns: Columns) -> Captions:
    """Read the captions file at `index` of the members.

    Raises:
        DataError: the file cannot be read, or does not fit its layout; names the file and the row. Rows are read
            lazily, so iterating them may raise it too.
    """
    member = files.members[index]
    place = f"{files.folder / member.archive}:{member.name}" if member.archive else str(files.folder / member.name)
    try:
        data = files.read(index, _MAX_CAPTIONS_BYTES)
    except MemberError as error:
        raise DataError(f"{place}: cannot be read ({error.reason}); download or create the archive again") from None
    captions = layout.read(CaptionsFile(data, place, member.place, member.name, columns))
    return captions._replace(rows=map(_without_surrogates, map(_shortened, captions.rows)))


def _shortened(row: CaptionRow) -> CaptionRow:
    """Cut a text that is no caption, because every later step copies it; `build` sets it aside as too long."""
    if len(row.caption.text) <= _MAX_CAPTION_CHARACTERS:
        return row
    return replace(row, caption=replace(row.caption, text=row.caption.text[:_MAX_CAPTION_CHARACTERS]))


def _without_surrogates(row: CaptionRow) -> CaptionRow:
    r"""Replace lone surrogates by U+FFFD: JSON can spell them ("\ud83d" alone), but no file can store them."""

    def replaced(text: str) -> str:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    if row.caption.text.isascii() and (row.picture or "").isascii():
        return row
    caption = replace(row.caption, text=replaced(row.caption.text))
    return replace(row, caption=caption, picture=row.picture and replaced(row.picture))
