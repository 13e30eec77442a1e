"""Where the pictures of bulk captioning come from: a folder with its zips, a zip, or a prefix of an S3 bucket.

Nothing is unpacked or copied: a picture is read when it is its turn.
"""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.data.audit import FILE_REASONS
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files, MemberError, open_files, open_zip, suffix

S3 = "s3://"
_ARCHIVES = (".zip", ".tar")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")


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
        ConfigError: it is something else; or the bucket does not exist or denies access.
        DataError: a zip can't be read.
        TemporaryError: the store can't be reached.
    """
    if isinstance(source, str) and source.startswith(S3):
        yield _Bucket(source)
        return
    path = Path(source)
    if path.is_dir():
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
    """The objects of a bucket whose keys start with a prefix and `/`; names are relative to the prefix.

    Credentials, region and endpoint come from the environment or `~/.aws`, as for every AWS tool.
    """

    def __init__(self, url: str) -> None:
        try:
            import s3fs
        except ImportError:
            raise ConfigError(f"{url}: reading S3 needs `pip install 'image-captioning[s3]'`") from None
        logging.getLogger("s3fs").setLevel(logging.CRITICAL)  # our line says what it would log
        root = url.removeprefix(S3).strip("/")
        if not root:
            raise ConfigError(f"{url}: names no bucket; name it s3://BUCKET/PREFIX")
        self._url = f"{S3}{root}"
        self._has_read = False
        with self._reached(""):
            self._system = s3fs.S3FileSystem(skip_instance_cache=True)
            found: Mapping[str, Any] = self._system.find(root, detail=True)
        self._sizes = {self._named(root, key): int(one["size"]) for key, one in sorted(found.items())}
        pictures = [name for name in self._sizes if _is_picture(name)]
        self.names = [name for name in pictures if _is_safe(name)]
        self.problems = [f"{name!r}: its key can't be the path of a file" for name in pictures if not _is_safe(name)]
        self.problems += [
            f"{name}: archives in a bucket are not read; unpack it, or download it"
            for name in self._sizes
            if suffix(name) in _ARCHIVES
        ]
        self._root = root

    @staticmethod
    def _named(root: str, key: str) -> str:
        """Return the name of an object; the URL may also name one object."""
        return key.removeprefix(f"{root}/") if key != root else key.rpartition("/")[2]

    def read(self, name: str, limit: int) -> bytes:
        size = self._sizes[name]
        if size > limit:
            raise UnreadableError(FILE_REASONS["too_many_bytes"])
        if not size:
            raise UnreadableError("is empty")
        key = self._root if self._root.endswith(f"/{name}") and len(self._sizes) == 1 else f"{self._root}/{name}"
        with self._reached(name):
            data: bytes = self._system.cat_file(key, start=0, end=limit + 1)  # it may have been replaced meanwhile
        self._has_read = True
        if len(data) > limit:
            raise UnreadableError(FILE_REASONS["too_many_bytes"])
        return data

    @contextlib.contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """Turn the store's exceptions into ours.

        Args:
            name: of the object that is read; "" while the bucket is listed.
        """
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        place = f"{self._url}/{name}" if name else self._url
        try:
            yield
        except NoCredentialsError:
            raise ConfigError(
                f"{place}: found no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
        except PermissionError as error:
            if self._has_read:  # this one object is protected or archived, and others are not
                raise UnreadableError(f"access denied ({_words(error)})") from None
            right = "read its objects (s3:GetObject)" if name else "list it (s3:ListBucket)"
            raise ConfigError(
                f"{place}: access denied ({_words(error)}); check the AWS credentials, and that they may {right}"
            ) from None
        except FileNotFoundError as error:
            if name:
                raise UnreadableError("is gone") from None
            raise ConfigError(f"{place}: not found ({_words(error)}); check the bucket's name and endpoint") from None
        except (ParamValidationError, ValueError):
            raise ConfigError(f"{place}: is no valid name of a bucket; name it s3://BUCKET/PREFIX") from None
        except (OSError, BotoCoreError, ClientError) as error:
            raise TemporaryError(
                f"{place}: {_words(error)}; captions so far are kept; run this again when the store answers"
            ) from None


def _is_safe(name: str) -> bool:
    """Return whether a key can be a path below a folder, and be printed."""
    return not _CONTROLS.search(name) and all(part not in ("", ".", "..") for part in name.split("/"))


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
