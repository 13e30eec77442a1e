"""`runtime`: what changes how long a run takes, but not what comes out. No stage names it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.sections.base import Section


class Launch(Section):
    """The processes that train together."""

    processes: Annotated[int, Field(ge=1, le=1024)]
    machines: Annotated[int, Field(ge=1, le=1024)]
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")]
    port: Annotated[int, Field(ge=1, le=65_535)]
    restarts: Annotated[int, Field(ge=0, le=1000)]

    @property
    def together(self) -> int:
        """How many there are on all machines."""
        return self.processes * self.machines


class Runtime(Section):
    """States, caches, processes and batches of generation."""

    state_minutes: Annotated[float, Field(ge=0)]
    feature_cache_gb: Annotated[float, Field(ge=0, le=100_000)]
    model_cache_gb: Annotated[float, Field(ge=0, le=100_000)]
    caption_batch_size: Annotated[int, Field(ge=1, le=65_536)]
    decode_threads: Annotated[int, Field(ge=0, le=1024)]
    memory_gb: Annotated[float, Field(ge=0, le=100_000)]
    engine: Literal["local", "ray"]
    ray_workers: Annotated[int, Field(ge=0, le=100_000)]
    ray_address: Annotated[str, Field(pattern=r"^(auto|\[?[A-Za-z0-9_.:-]+\]?:[0-9]{1,5})$")] | None
    launch: Launch
