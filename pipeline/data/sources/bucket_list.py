"""A list of a bucket's objects, `bucket.jsonl`, in a source's folder: they are the source's files, and stay there.

The first line names the bucket, and the table that was given with it. Each further line is an object: its name below
the prefix, its bytes, and its ETag. What is read has that ETag, or the run stops: a list always gives the same data.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.config.errors import ConfigError, DataError
from pipeline.data.sources.member import MemberError
from pipeline.runtime.atomic_files import read_json_lines, write_json_lines
from pipeline.runtime.bucket import CONNECTIONS, S3, Bucket, ObjectError

NAME = "bucket.jsonl"
READERS = CONNECTIONS
_URL = re.compile(r"s3://[^/\s]+(/[^\x00-\x1f]*)?")


class Listed(NamedTuple):
    """An object.

    Attributes:
        name: its key below the prefix.
        size: in bytes.
        etag: changes with its content.
        copied: whether the source's folder has a copy, which is read instead: of captions, so that DVC has them.
    """

    name: str
    size: int
    etag: str
    copied: bool = False


class BucketList(NamedTuple):
    """The content of `bucket.jsonl`.

    Attributes:
        url: `s3://BUCKET/PREFIX`.
        table: name of the captions table that was given with the bucket, or None.
        objects: sorted by name.
    """

    url: str
    table: str | None
    objects: list[Listed]


def write_list(folder: Path, listed: BucketList) -> None:
    """Write a list to a source's folder."""

    def lines() -> Iterable[dict[str, object]]:
        yield {"bucket": listed.url, "table": listed.table}
        for one in listed.objects:
            line: dict[str, object] = {"name": one.name, "size": one.size, "etag": one.etag}
            yield {**line, "copied": True} if one.copied else line

    write_json_lines(folder / NAME, lines())


def read_list(folder: Path) -> BucketList | None:
    """Return a source's list; None if it has none.

    Raises:
        DataError: it is damaged; names the line.
    """
    file = folder / NAME
    if not file.is_file() or file.is_symlink():
        return None
    number, mend = 1, f"run `dvc checkout {folder}.dvc`"
    objects: list[Listed] = []
    try:
        lines = read_json_lines(file)
        head = next(lines)
        url, table = head["bucket"], head["table"]
        if not (isinstance(url, str) and _URL.fullmatch(url) and (table is None or isinstance(table, str))):
            raise ValueError(f"found {head!r:.80}, expected a bucket's URL, {S3}BUCKET/PREFIX")
        for line in lines:
            number += 1
            one = Listed(**line)
            kinds = isinstance(one.name, str), isinstance(one.etag, str), isinstance(one.size, int), one.size >= 0
            if not all(kinds):
                raise ValueError(f"found {line!r:.80}, expected a name, a size and an ETag")
            if objects and objects[-1].name >= one.name:
                raise ValueError(f"{one.name!r:.80} is not sorted, or there twice")
            objects.append(one)
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{file}: line {number}: {reason}; {mend}") from None
    return BucketList(url, table, objects)


def check_no_list(*places: Path) -> None:
    """Refuse a list that comes with pictures: a stranger's would have us read any bucket with this person's keys.

    Raises:
        ConfigError: one of the places is a list, or a folder with one.
    """
    for file in (file for place in places for file in (place / NAME, place)):
        if file.name == NAME and os.path.lexists(file):
            raise ConfigError(
                f"{file}: would be read as the list of a bucket; delete it, or name the bucket, {S3}BUCKET/PREFIX"
            )


class BucketReader:
    """Reads the objects of a list. Threads may share it; the store is asked at the first read.

    Args:
        source: the name of the source, for messages.
        url: of the bucket.
    """

    def __init__(self, source: str, url: str) -> None:
        self._source = source
        self._url = url
        self._bucket: Bucket | None = None
        self._lock = threading.Lock()

    def size(self, one: Listed) -> int:
        """Return the size of an object in bytes, as listed."""
        return one.size

    def stamp(self, one: Listed) -> bytes:
        """Return what identifies the bytes of an object without reading them, 16 bytes."""
        facts = "\n".join((self._url, one.name, one.etag, str(one.size)))
        return hashlib.blake2b(facts.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def read(self, one: Listed, limit: int) -> bytes:
        """Return the bytes of an object.

        Raises:
            MemberError: it is larger than `limit`.
            DataError: it is gone or changed.
            ConfigError: access is denied.
            TemporaryError: the store can't be reached.
        """
        if one.size > limit:
            raise MemberError("too_many_bytes")
        if not one.size:
            return b""
        with self._lock:
            self._bucket = self._bucket or Bucket(self._url)
        try:
            return self._bucket.read(one.name, limit, one.etag)
        except ObjectError as error:
            place = f"{self._url}/{one.name}"
            if error.gone or error.changed:
                raise DataError(
                    f"{place}: {error} since the bucket was listed; run `image-captioning add-bucket {self._source}`"
                    " to list it again"
                ) from None
            raise ConfigError(f"{place}: {error}; allow it, or move the object out of the prefix") from None


def walk_order(path: str) -> list[tuple[int, str]]:
    """Return a key that sorts paths as they are found in a folder: a folder's files, then its subfolders.

    >>> sorted(["b/1", "c", "a/b/2", "a/c"], key=walk_order)
    ['c', 'a/c', 'a/b/2', 'b/1']
    """
    *folders, base = path.split("/")
    return [*((1, folder) for folder in folders), (0, base)]
