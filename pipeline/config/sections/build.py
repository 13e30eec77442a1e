"""`build`: how the data set is made from what was ingested."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.sections.base import Fraction, Section


class Captions(Section):
    """The text policy: what becomes of a caption's words."""

    repair: bool
    emoji: Literal["keep", "words", "drop"]
    hashtags: Literal["keep", "words", "drop"]
    mentions: Literal["keep", "replace", "drop"]
    web_addresses: Literal["keep", "replace", "drop"]
    min_words: Annotated[int, Field(ge=1, le=1000)]
    max_words: Annotated[int, Field(ge=1, le=100_000)]

    @model_validator(mode="after")
    def _leaves_some(self) -> Captions:
        if self.min_words > self.max_words:
            raise ValueError("`min_words` is more than `max_words`, which no caption can meet; lower it")
        return self


class Build(Section):
    """How the data set is made of what was ingested."""

    captions: Captions
    splits: Literal["source", "hash"]
    validation: Fraction
    test: Fraction
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]
    max_unknown_words: Annotated[float, Field(ge=0, le=1)]
    max_cut_captions: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Build:
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` together leave nothing to train on; keep their sum below 1")
        return self
