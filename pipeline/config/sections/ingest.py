"""`ingest`: how raw archives are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.sections.base import Name, Section


class Columns(Section):
    """The names of the columns of tables; null stands for the usual names."""

    picture: str | None
    caption: str | None


class Ingest(Section):
    """How raw archives are read."""

    sources: Annotated[list[Name], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=16, le=4096)]
    min_side: Annotated[int, Field(ge=1, le=4096)]
    max_pixels: Annotated[int, Field(ge=1, le=500_000_000)]
    max_set_aside: Annotated[float, Field(ge=0, le=1)]
    columns: Columns
    exclude: list[Annotated[str, Field(min_length=1)]]

    @model_validator(mode="after")
    def _keeps_some(self) -> Ingest:
        if self.min_side > self.image_size:
            raise ValueError("`min_side` is more than `image_size`, so no picture would be left; lower it")
        return self

    @model_validator(mode="after")
    def _no_source_twice(self) -> Ingest:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("a source stands twice in `sources`; name each once")
        return self
