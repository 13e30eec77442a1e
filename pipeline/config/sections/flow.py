"""`flow`: how the flows run the stages. No stage's result depends on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.sections.base import Minutes, Section


class Timeouts(Section):
    """After how many minutes each stage, and each step of the flows beside the stages, is ended."""

    ingest: Minutes
    build: Minutes
    finetune: Minutes
    compare: Minutes
    evaluate: Minutes
    register_: Annotated[Minutes, Field(alias="register")]
    fetch: Minutes
    promote: Minutes
    publish: Minutes
    other: Minutes

    def of(self, name: str) -> float:
        """The minutes of a stage or a step."""
        return float(self.model_dump(by_alias=True).get(name, self.other))


class Flow(Section):
    """How the flows run the stages. No stage's result depends on it."""

    retries: Annotated[int, Field(ge=0, le=20)]
    retry_seconds: Annotated[float, Field(ge=0, le=86_400)]
    timeout_minutes: Timeouts
    wait_minutes: Annotated[float, Field(ge=0, le=1_000_000)]
    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None
