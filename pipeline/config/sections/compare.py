"""`compare`: which other architectures are trained and evaluated beside the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.sections.base import Section
from pipeline.config.sections.finetune import CREATED, Finetune


class Compare(Section):
    """Which other architectures are trained and evaluated beside the model."""

    architectures: list[str]
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None

    @model_validator(mode="after")
    def _are_created(self) -> Compare:
        for name in self.architectures:
            if name not in CREATED:
                raise ValueError(f"`architectures` has {name!r:.40}, which is none of {', '.join(CREATED)}; correct it")
        if len(set(self.architectures)) < len(self.architectures):
            raise ValueError("`architectures` names one twice; name each once")
        return self

    def settings(self, finetune: Finetune, architecture: str) -> Finetune:
        """Return how an architecture is trained: like the model, with what its kind of start needs."""
        return finetune.model_copy(
            update={
                "checkpoint": architecture,
                "revision": None,
                "new_tokens": 0,
                "freeze": "none" if architecture == "scratch" else "image_encoder",
                "lora": finetune.lora.model_copy(update={"rank": 0}),
                "learning_rate": "auto",
                "gradient_checkpointing": False,
                "epochs": self.epochs or finetune.epochs,
            }
        )
