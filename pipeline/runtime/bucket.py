"""The one door to S3 buckets: list objects, read them, and turn the store's exceptions into ours.

Credentials, region and endpoint come from the environment or `~/.aws`, as for every AWS tool. A store that does not
answer, or answers that it is busy, is asked again with exponential backoff.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pipeline.config.errors import ConfigError, PipelineError, TemporaryError

R = TypeVar("R")

S3 = "s3://"
CONNECTIONS = 16  # that are open at once, and threads that reading pays off with
_PATIENCE_SECONDS = 60.0  # in which a request is repeated
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between repetitions
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")
_BUSY = (408, 409, 425, 429)  # HTTP statuses below 500 after which the same request may succeed
_BUSY_CODES = ("RequestTimeout", "SlowDown", "Throttling")
_RUN_AGAIN = "run this again when the store answers"


class Stored(NamedTuple):
    """An object as listed: its bytes, and the ETag, which changes with its content."""

    size: int
    etag: str


class ObjectError(Exception):
    """One object can't be read.

    Attributes:
        gone, changed: whether it does not exist any more, or has another ETag; else access is denied.
    """

    def __init__(self, words: str, *, gone: bool = False, changed: bool = False) -> None:
        super().__init__(words)
        self.gone, self.changed = gone, changed


def is_path(name: str) -> bool:
    """Return whether the name of an object can be a path below a folder, and be printed.

    >>> is_path("2026/1.jpg"), is_path("../1.jpg"), is_path("/1.jpg"), is_path("a//1.jpg")
    (True, False, False, False)
    """
    return not _CONTROLS.search(name) and all(part not in ("", ".", "..") for part in name.split("/"))


class Bucket:
    """The objects of a bucket whose keys start with a prefix and `/`. Threads may share it.

    Attributes:
        url: `s3://BUCKET/PREFIX`; that of the folder if `objects` found a single object.
        root: `BUCKET/PREFIX`, as fsspec has it.
        system: fsspec's file system; use it within `reached`.

    Args:
        url: the same, or of one object.
        options: of s3fs, like `endpoint_url`.
        then: what to do after a failure that may pass, for messages.

    Raises:
        ConfigError: the URL names no bucket, or s3fs is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, then: str = _RUN_AGAIN) -> None:
        try:
            import s3fs
        except ImportError:
            raise ConfigError(f"{url}: reading S3 needs `pip install 'image-captioning[s3]'`") from None
        logging.getLogger("s3fs").setLevel(logging.CRITICAL)  # our line says what it would log
        self.root = url.removeprefix(S3).strip("/")
        if not self.root:
            raise ConfigError(f"{url}: names no bucket; name it s3://BUCKET/PREFIX")
        self.url = f"{S3}{self.root}"
        self._bucket, _, prefix = self.root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._then = then
        self._has_read = False
        self._given_up = threading.Event()  # what one thread has waited for in vain, the others need not wait for
        self._said_so = threading.Lock()
        with self.reached():
            self.system = s3fs.S3FileSystem(
                skip_instance_cache=True, config_kwargs={"max_pool_connections": CONNECTIONS}, **(options or {})
            )

    def objects(self) -> dict[str, Stored]:
        """Return the objects by their names below the prefix, sorted; folders' marks are left out.

        If there are none and the URL is that of one object, it is returned under its file name.

        Raises:
            ConfigError: the bucket does not exist, or denies access.
            TemporaryError: the store can't be reached.
        """
        found = dict(self._pages(self._prefix))
        if not found and self._prefix:
            folder, _, base = self._prefix.rstrip("/").rpartition("/")
            parent = f"{folder}/" if folder else ""
            alone = {name: one for name, one in self._pages(parent + base, parent) if name == base}
            if alone:
                self._prefix, found = parent, alone
                self.url = f"{S3}{self._bucket}/{folder}".rstrip("/")
        return {name: found[name] for name in sorted(found)}

    def _pages(self, prefix: str, below: str | None = None) -> Iterator[tuple[str, Stored]]:
        start = len(prefix if below is None else below)
        more: dict[str, str] = {}
        while True:
            call = partial(self.system.call_s3, "list_objects_v2", Bucket=self._bucket, Prefix=prefix, **more)
            page = self._patiently("", call)
            for one in page.get("Contents", ()):
                if not one["Key"].endswith("/"):
                    yield one["Key"][start:], Stored(int(one["Size"]), one["ETag"].strip('"'))
            if not page.get("IsTruncated") or below is not None:
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, name: str, limit: int, etag: str | None = None) -> bytes:
        """Return the bytes of an object that is not empty, at most `limit` + 1.

        Args:
            name: below the prefix.
            limit: of what is read.
            etag: that it must have; None for any.

        Raises:
            ObjectError: it is gone or changed; or access is denied, while others could be read.
            ConfigError: access is denied.
            TemporaryError: the store can't be reached.
        """
        from fsspec.asyn import sync

        wanted = {"IfMatch": f'"{etag}"'} if etag else {}

        async def get() -> tuple[bytes, str]:
            found = await self.system._call_s3(
                "get_object", Bucket=self._bucket, Key=self._prefix + name, Range=f"bytes=0-{limit}", **wanted
            )
            async with found["Body"] as body:
                return await body.read(), found.get("ETag", "").strip('"')

        data: bytes
        data, has = self._patiently(name, lambda: sync(self.system.loop, get))
        if etag and has != etag:  # a store that ignores conditions
            raise ObjectError("has changed", changed=True)
        self._has_read = True
        return data

    @contextlib.contextmanager
    def reached(self, name: str = "") -> Iterator[None]:
        """Turn the exceptions of `system` into ours; nothing is repeated.

        Args:
            name: of the object; "" for the bucket itself.

        Raises:
            FileNotFoundError: as the store says.
            ConfigError, TemporaryError, ObjectError: see `read`.
        """
        try:
            yield
        except (PipelineError, ObjectError, FileNotFoundError):
            raise
        except Exception as error:
            if not _is_of_store(error):
                raise
            raise self._explained(error, name) from None

    def _patiently(self, name: str, call: Callable[[], R]) -> R:
        """Return what a request returns; a failure that may pass is waited for."""
        began, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                with self.reached(name):
                    return call()
            except FileNotFoundError as error:
                if name:
                    raise ObjectError("is gone", gone=True) from None
                raise ConfigError(
                    f"{self.url}: not found ({_words(error)}); check the bucket's name and endpoint"
                ) from None
            except TemporaryError as error:
                if time.monotonic() - began + wait > _PATIENCE_SECONDS:
                    self._given_up.set()
                    raise
                if self._said_so.acquire(blocking=False):  # once, and by one thread
                    what = str(error).removesuffix(f"; {self._then}")
                    print(f"{what}; trying again for {_PATIENCE_SECONDS:.0f} s", file=sys.stderr, flush=True)
                if self._given_up.wait(wait * random.uniform(0.5, 1)):
                    raise
            wait = min(2 * wait, _LONGEST_WAIT)

    def _explained(self, error: Exception, name: str) -> Exception:
        from botocore.exceptions import NoCredentialsError, ParamValidationError, PartialCredentialsError

        place = f"{self.url}/{name}" if name else self.url
        status, code = _answer(error)
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return ConfigError(
                f"{place}: found no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if isinstance(error, PermissionError):
            if self._has_read and name:  # this one object is protected or archived, and others are not
                return ObjectError(f"access denied ({_words(error)})")
            right = "read its objects (s3:GetObject)" if name else "list it (s3:ListBucket)"
            return ConfigError(
                f"{place}: access denied ({_words(error)}); check the AWS credentials, and that they may {right}"
            )
        if status == 412:
            return ObjectError("has changed", changed=True)
        if isinstance(error, (ParamValidationError, ValueError)):
            return ConfigError(
                f"{place}: is no valid name of a bucket ({_words(error)}); name it s3://BUCKET/PREFIX, and check"
                " AWS_ENDPOINT_URL_S3"
            )
        if status is not None and 300 <= status < 500 and status not in _BUSY and code not in _BUSY_CODES:
            return ConfigError(f"{place}: {_words(error)}; check the bucket's name, region and endpoint")
        return TemporaryError(f"{place}: {_words(error)}; {self._then}")


def _is_of_store(error: Exception) -> bool:
    """Return whether the store, the network or the client failed, and not our code."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError  # what is no XML, as busy servers answer

    kinds = (OSError, ValueError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)
    return isinstance(error, kinds)


def _answer(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status and the code of the store's answer; None and "" if there was none."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(answer, Mapping):
        return None, ""
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code", "")


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
