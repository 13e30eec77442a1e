"""`promote`: when a new version replaces the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.sections.base import Section


class Promote(Section):
    """When a new version takes the place of the champion."""

    metric: str  # `promote` checks it against the registered metrics (tracking/gate.py)
    least_gain: Annotated[float, Field(ge=-10, le=10)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    least_pictures: Annotated[int, Field(ge=1, le=1_000_000)]
    least_distinct: Annotated[float, Field(ge=0, le=1)]
    approval: Literal["none", "borderline", "always"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
