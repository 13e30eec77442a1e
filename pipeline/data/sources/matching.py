"""Match a source's caption rows with its pictures: each row has one picture, or is set aside with a reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.data.audit import Audit
from pipeline.data.dataset import RawCaption, Withdrawn
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files
from pipeline.data.sources.delimited import Columns
from pipeline.data.sources.layout import CaptionRow
from pipeline.data.sources.layouts import find_captions_files, is_resource_fork, read_captions
from pipeline.data.sources.member import suffix
from pipeline.data.sources.picture_index import UNSUPPORTED, VIDEOS, PictureIndex, most_similar, why_unused
from pipeline.data.text import clean

_SUMMARIES = 100  # captions files in the report, at most: there may be one for each picture


class MatchedCaptions:
    """The captions of each picture of a source.

    Attributes:
        captions: index of every picture file among the members -> its captions.
        splits: index -> the picture's splits in a data set that has splits of its own.
        alone: indices of the pictures that a row shows alone.
        posts: index -> the posts of several pictures that show it, each as the indices of its pictures in order.
        foreign_paths: number of rows that name an absolute path of another machine, or a URL.
        may_be_empty: whether a source without a usable picture is no error.
        withdrawn: captions to remove from pictures of other sources; None if the layout has no such thing.
        files_read: a summary for the first captions files.
    """

    def __init__(self, name: str, files: Files, audit: Audit, columns: Columns) -> None:
        """Read all captions files.

        Args:
            name: of the source.
            files: of the source.
            audit: counts all files and rows, and lists those that are set aside.
            columns: the columns of a table.

        Raises:
            DataError: see `find_captions_files` and `read_captions`.
        """
        self._name = name
        self._files = files
        self._audit = audit
        self._missing: CaptionRow | None = None  # the first row that names a picture which the source lacks
        self.captions: dict[int, list[RawCaption]] = {}
        self.splits: dict[int, set[str]] = {}
        self.alone: set[int] = set()
        self.posts: dict[int, list[list[int]]] = {}
        self.foreign_paths = 0
        self.may_be_empty = False
        self.withdrawn: list[Withdrawn] | None = None
        self.files_read = self._read(columns)[:_SUMMARIES]

    def _read(self, columns: Columns) -> list[dict[str, Any]]:
        """Sort the files by name and read the captions of each picture; return a summary for each captions file."""
        members = self._files.members
        layouts = find_captions_files(self._files, columns)
        self._audit.files, self._audit.captions_files = len(members), len(layouts)
        for index, member in enumerate(members):
            if is_resource_fork(member):
                self.set_aside(index, "not_a_picture_file")
            elif member.suffix in SUFFIXES:
                self.captions[index] = []
            elif index not in layouts:
                self.set_aside(index, member.refused or why_unused(member.suffix))
        # A row names the file that exists under that name once the archive is unpacked.
        by_name = PictureIndex({i: members[i] for i in self.captions if members[i].refused != "duplicate_name"})
        unsupported = PictureIndex({i: member for i, member in enumerate(members) if member.suffix in UNSUPPORTED})
        summaries: list[dict[str, Any]] = []
        for index, layout in layouts.items():
            captions = read_captions(self._files, index, layout, columns)
            rows = self._assign(captions.rows, by_name, unsupported, members[index].archive)
            self.may_be_empty |= layout.may_be_empty
            if captions.withdrawn is not None:
                self.withdrawn = [*(self.withdrawn or ()), *captions.withdrawn]
            summaries.append(
                {"file": members[index].place, "layout": layout.name, "encoding": captions.encoding, "rows": rows}
            )
        return summaries

    def _assign(
        self, rows: Iterable[CaptionRow], by_name: PictureIndex, unsupported: PictureIndex, archive: str
    ) -> int:
        """Assign each caption to its picture, or set the row aside; return the number of rows.

        Args:
            rows: of one captions file.
            by_name: the pictures.
            unsupported: the files in formats that cannot be read.
            archive: the archive of the captions file, whose pictures win over those of others; "" for none.
        """
        before = self._audit.rows
        posts: dict[int, list[int]] = {}  # post -> its pictures in order
        for row in rows:
            self._audit.rows += 1
            wanted = None if row.set_aside else row.picture
            matches = by_name.find(wanted, row.folder) if wanted else set()
            if wanted and not matches:
                matches = by_name.find_foreign(wanted)
                self.foreign_paths += len(matches) == 1
            if len(matches) > 1 and archive:
                matches = {i for i in matches if self._files.members[i].archive == archive} or matches
            index = min(matches, default=-1)
            reason = None
            if row.set_aside:
                reason = row.set_aside
            elif row.picture is None:
                reason = "malformed"
            elif not clean(row.caption.text):
                reason = "empty"
            elif len(matches) > 1:
                reason = "picture_ambiguous"
            elif not matches and unsupported.find(row.picture, row.folder):
                reason = "picture_set_aside"
            elif not matches:
                reason = "video" if suffix(row.picture) in VIDEOS else "picture_missing"
            if reason:
                if reason == "picture_missing":
                    self._missing = self._missing or row
                self._audit.set_aside_row(self._name, row.caption.file, row.caption.row, reason, row.picture or "")
                continue
            self.captions[index].append(row.caption)
            if row.split:
                self.splits.setdefault(index, set()).add(row.split)
            if row.post is None:
                self.alone.add(index)
            else:
                post = posts.setdefault(row.post, [])
                post.append(index)
                self.posts.setdefault(index, []).append(post)
        return self._audit.rows - before

    def example(self) -> str:
        """Return an example of a missing name beside one that is there, for a message; "" if no name is missing."""
        if self._missing is None:
            return ""
        wanted = self._missing.picture or ""
        places = [self._files.members[index].place for index in self.captions]
        similar = most_similar(wanted, places) or "no picture"
        row = self._missing.caption
        return f"; {row.file}, row {row.row} names {wanted!r}, and the source has {similar}"

    def set_aside(self, index: int, reason: str) -> None:
        """Set aside a file and the rows that name it."""
        place = self._files.members[index].place
        self._audit.set_aside_file(self._name, place, reason)
        for caption in self.captions.get(index, ()):
            self._audit.set_aside_row(self._name, caption.file, caption.row, "picture_set_aside", place)
