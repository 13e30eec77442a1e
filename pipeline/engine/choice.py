"""From `runtime.engine` to an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.sections.runtime import Runtime
from pipeline.engine.base import Engine
from pipeline.engine.local import LocalEngine


@contextmanager
def open_engine(runtime: Runtime) -> Iterator[Engine]:
    """Yield the engine that the params choose; nothing of Ray is imported for `local`.

    Raises:
        ConfigError: Ray is not installed, or its version or that of a library differs in the cluster.
        TemporaryError: there is no cluster at `runtime.ray_address`.
    """
    if runtime.engine == "local":
        yield LocalEngine(runtime.decode_threads)
        return
    from pipeline.engine.ray_cluster import connected
    from pipeline.engine.ray_engine import RayEngine

    with connected(runtime.ray_address, runtime.ray_workers):
        yield RayEngine(runtime.ray_workers)
