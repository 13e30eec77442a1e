"""`evaluate`: how the fine-tuned model is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.sections.base import Section


class Evaluate(Section):
    """How the fine-tuned model is measured."""

    max_pictures: Annotated[int, Field(ge=1)]
    beams: Annotated[int, Field(ge=1, le=32)]
    gallery_pictures: Annotated[int, Field(ge=1, le=10_000)]
