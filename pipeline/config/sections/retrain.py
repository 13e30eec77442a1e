"""`retrain`: what starts the retraining flow, what it starts from, publishes and keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.sections.base import Section


class Retrain(Section):
    """What starts the retraining flow, what it starts from, publishes and keeps."""

    start: Literal["base", "champion"]
    on_code_change: Literal["params", "all", "none"]
    on_drift: bool
    publish: bool
    keep: Annotated[int, Field(ge=1, le=100_000)]
