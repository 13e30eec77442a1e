"""The files below a folder, or below a prefix of a bucket, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.runtime.atomic_files import PARTIAL, remove
from pipeline.runtime.bucket import S3, Bucket


class Files:
    """A folder, or a prefix of a bucket, with the files below it.

    Attributes:
        url: the place.
        is_local: whether it is a folder of this machine.

    Args:
        url: a path, or a URL that fsspec knows, like `s3://BUCKET/PREFIX`.
        options: of fsspec's file system, like an endpoint.

    Raises:
        ConfigError: no installed package knows such URLs.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        self._bucket = Bucket(url, options, then="mend that, then run it again") if url.startswith(S3) else None
        if self._bucket:
            self._system, self._root = self._bucket.system, self._bucket.root
        else:
            try:
                self._system, root = url_to_fs(url, **(options or {}))
            except (ImportError, ValueError) as error:
                raise ConfigError(f"{url}: {error}; install the package that reads such URLs") from None
            self._root = root.rstrip("/")
        self.is_local = "file" in self._system.protocol

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file, by its name below the root, sorted.

        Raises:
            TemporaryError: the store can't be reached.
        """
        with self._reachable():
            self._system.invalidate_cache()
            if not self._system.exists(self._root):
                return {}
            found = self._system.find(self._root, detail=True)
        start = len(self._root) + 1
        return {path[start:]: int(found[path]["size"]) for path in sorted(found)}

    def get(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reachable():
            self._system.get_file(f"{self._root}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        """Copy a local file here. It appears whole or not at all."""
        with self._reachable():
            if self.is_local:
                target = Path(self._root) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                place = target.with_name(f".{target.name}{PARTIAL}")
                self._system.put_file(str(path), str(place))
                place.replace(target)
                return
            try:
                self._system.put_file(str(path), f"{self._root}/{name}")
            except FileNotFoundError:
                raise ConfigError(f"{self.url}: there is no such bucket; create it, then run this again") from None

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading from its start to its end."""
        with self._reachable(), self._system.open(f"{self._root}/{name}", "rb", cache_type="readahead") as stream:
            yield stream

    @contextmanager
    def local(self, name: str, scratch: Path) -> Iterator[Path]:
        """Yield a local path with a file's content: its own, or that of a copy that ends with the block."""
        if self.is_local:
            yield Path(self._root) / name
            return
        path = scratch / name
        try:
            self.get(name, path)
            yield path
        finally:
            remove(path)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        if paths := [f"{self._root}/{name}" for name in names]:
            with self._reachable():
                self._system.rm(paths)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Turn a store's exceptions, of which each kind of store has its own, into ours."""
        try:
            with self._bucket.reached() if self._bucket else nullcontext():
                yield
        except PipelineError:
            raise
        except Exception as error:
            if self.is_local and isinstance(error, OSError) and error.errno:
                raise
            words = " ".join(str(error).split())[:200]
            what = f"{self.url}: {type(error).__name__}: {words}"
            if isinstance(error, PermissionError):
                raise ConfigError(f"{what}; check its keys, and what they may do there") from None
            raise TemporaryError(f"{what}; mend that, then run it again") from None
