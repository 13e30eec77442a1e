"""`serving`: queue, batches and time limits of the captioning service. No stage names it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.sections.base import Section


class Serving(Section):
    """Queue, batches and time limits of `image-captioning serve-model`."""

    max_batch: Annotated[int, Field(ge=1, le=1024)]
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)]
    max_queue: Annotated[int, Field(ge=64, le=65_536)]
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)]
    follow_seconds: Annotated[float, Field(gt=0, le=3600)]
    watch: bool
