"""`evaluate`: how captions are chosen, and how the fine-tuned model is measured."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.sections.base import Name, Section


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
    samples: Annotated[int, Field(ge=0, le=1000)]
    temperature: Annotated[float, Field(gt=0, le=10)]
    neighbours: Annotated[int, Field(ge=1, le=10_000)]
    likelihood: Annotated[float, Field(ge=0, le=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @property
    def compares(self) -> bool:
        """Whether candidates are compared with other captions, which takes the index of the training captions."""
        return self.method != "beam"


class ClipScore(Section):
    """The CLIP model that judges whether a caption fits its picture."""

    checkpoint: str | None
    revision: str | None

    @model_validator(mode="after")
    def _pinned(self) -> ClipScore:
        name = self.checkpoint
        if name is not None and not Path(name).is_dir() and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`checkpoint` {name!r} is not a folder, so it is read as a hub name, and `revision` must pin it:"
                " copy the 40-digit commit from 'Files and versions' of the model's page"
            )
        return self


Phrase = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
SameMeaning = Annotated[list[Phrase], Field(min_length=1, max_length=100)]
Words = Annotated[list[Phrase | SameMeaning], Field(min_length=1, max_length=1000)]


class Evaluate(Section):
    """How captions are chosen, and how the fine-tuned model is measured."""

    max_pictures: Annotated[int, Field(ge=1)]
    generation: GenerationSettings
    decoding: DecodingSettings
    clip_score: ClipScore
    named_words: Annotated[dict[Name, Words], Field(max_length=100)]
    gallery_pictures: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _something_to_choose_from(self) -> Evaluate:
        if self.decoding.compares and self.decoding.samples == 0 and self.generation.beams == 1:
            raise ValueError(
                f"`decoding.method` {self.decoding.method} chooses among beams and samples, and `generation.beams: 1`"
                " with `decoding.samples: 0` leaves a single caption; raise one of them"
            )
        return self

    @field_validator("named_words")
    @classmethod
    def _each_word_once(cls, groups: dict[str, list[str | list[str]]]) -> dict[str, list[str | list[str]]]:
        known: dict[str, str] = {}
        for group, entries in groups.items():
            for word in chain.from_iterable([entry] if isinstance(entry, str) else entry for entry in entries):
                plain = " ".join(word.casefold().split())
                if plain in known:
                    raise ValueError(f"found {word!r} twice, in {known[plain]} and in {group}; remove one of them")
                known[plain] = group
        return groups

    @property
    def beams(self) -> int:
        """The width of beam search."""
        return self.generation.beams
