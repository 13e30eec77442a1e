"""Where the pictures of bulk captioning come from: a folder with its zips, a zip, or a prefix of an S3 bucket.

Nothing is unpacked or copied: a picture is read when it is its turn.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.errors import ConfigError
from pipeline.data.audit import FILE_REASONS
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files, open_files, open_zip
from pipeline.data.sources.bucket_list import check_no_list
from pipeline.data.sources.member import MemberError, suffix
from pipeline.runtime.bucket import S3, Bucket, ObjectError, is_path

_ARCHIVES = (".zip", ".tar")


class UnreadableError(Exception):
    """A picture can't be read; the message says why."""


class Source(ABC):
    """Pictures by their names.

    Attributes:
        names: file names as in `bulk_record.Line`, each once.
        problems: what is not read, and why.
    """

    names: list[str]
    problems: list[str]

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of a picture, at most `limit`. Threads may share it.

        Raises:
            UnreadableError: it is damaged, too large, or gone.
            ConfigError: access is denied.
            TemporaryError: the store can't be reached.
        """


@contextlib.contextmanager
def open_source(source: Path | str) -> Iterator[Source]:
    """Open a folder, a zip, or `s3://BUCKET/PREFIX` for reading.

    Raises:
        ConfigError: it is something else, or a folder with the list of a bucket; or the bucket does not exist or
            denies access.
        DataError: a zip can't be read.
        TemporaryError: the store can't be reached.
    """
    if isinstance(source, str) and source.startswith(S3):
        yield _Bucket(source)
        return
    path = Path(source)
    if path.is_dir():
        check_no_list(path)
        with open_files(path) as files:
            yield _Files(files)
    elif path.suffix.lower() == ".zip" and path.is_file():
        with open_zip(path) as files:
            yield _Files(files)
    else:
        raise ConfigError(f"{source}: with --out, name one folder or .zip, or s3://BUCKET/PREFIX")


def _is_picture(name: str) -> bool:
    return suffix(name) in SUFFIXES and not name.rpartition("/")[2].startswith("._")  # macOS adds such files to zips


class _Files(Source):
    def __init__(self, files: Files) -> None:
        self._files = files
        pictures = [(index, one) for index, one in enumerate(files.members) if _is_picture(one.name)]
        self._indices = {one.place: index for index, one in pictures if not one.refused}
        self.names = list(self._indices)
        self.problems = [f"{one.place}: {FILE_REASONS[one.refused]}" for _, one in pictures if one.refused]

    def read(self, name: str, limit: int) -> bytes:
        try:
            return self._files.read(self._indices[name], limit)
        except MemberError as error:
            raise UnreadableError(FILE_REASONS[error.reason]) from None


class _Bucket(Source):
    """The objects of a bucket whose keys start with a prefix and `/`; names are relative to the prefix."""

    def __init__(self, url: str) -> None:
        self._bucket = Bucket(url, then="captions so far are kept; run this again when the store answers")
        self._objects = self._bucket.objects()
        pictures = [name for name in self._objects if _is_picture(name)]
        self.names = [name for name in pictures if is_path(name)]
        self.problems = [f"{name!r}: its key can't be the path of a file" for name in pictures if not is_path(name)]
        self.problems += [
            f"{name}: archives in a bucket are not read; unpack it, or download it"
            for name in self._objects
            if suffix(name) in _ARCHIVES
        ]

    def read(self, name: str, limit: int) -> bytes:
        size = self._objects[name].size
        if size > limit:
            raise UnreadableError(FILE_REASONS["too_many_bytes"])
        if not size:
            raise UnreadableError("is empty")
        try:
            data = self._bucket.read(name, limit)  # whatever it is now
        except ObjectError as error:
            raise UnreadableError(str(error)) from None
        if len(data) > limit:
            raise UnreadableError(FILE_REASONS["too_many_bytes"])
        return data
