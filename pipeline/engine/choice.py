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
        ConfigError: Ray is not installed, or the cluster has another version of it.
        TemporaryError: Ray does not start, or its cluster does not answer.
    """
    if runtime.engine == "local":
        yield LocalEngine(runtime.decode_threads)
        return
    from pipeline.engine.ray_engine import RayEngine
    from pipeline.engine.ray_session import started

    with started(runtime.ray_workers, runtime.ray_address):
        yield RayEngine(runtime.ray_workers)
