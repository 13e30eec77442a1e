"""`evaluate`: how captions are chosen, and how the fine-tuned model is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.sections.base import Section


class GenerationSettings(Section):
    """How the model writes captions, in the words of transformers' `generate`."""

    beams: Annotated[int, Field(ge=1, le=32)]
    length_penalty: Annotated[float, Field(ge=-10, le=10)]
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)]
    min_tokens: Annotated[int, Field(ge=0, le=1000)]
    temperature: Annotated[float, Field(gt=0, le=10)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: Annotated[int, Field(ge=0, le=1_000_000)]
    prompt: Annotated[str, Field(max_length=1000)]


class DecodingSettings(Section):
    """How a caption is chosen among those that the model can write."""

    method: Literal["beam", "mbr", "consensus", "both"]
    samples: Annotated[int, Field(ge=1, le=1000)]
    temperature: Annotated[float, Field(gt=0, le=10)]
    neighbours: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @property
    def compares(self) -> bool:
        """Whether candidates are compared with other captions, which takes the index of the training captions."""
        return self.method != "beam"


class Evaluate(Section):
    """How captions are chosen, and how the fine-tuned model is measured."""

    max_pictures: Annotated[int, Field(ge=1)]
    generation: GenerationSettings
    decoding: DecodingSettings
    gallery_pictures: Annotated[int, Field(ge=1, le=10_000)]

    @property
    def beams(self) -> int:
        """The width of beam search."""
        return self.generation.beams
