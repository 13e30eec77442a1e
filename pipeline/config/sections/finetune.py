"""`finetune`: what is trained, from where, and for how long."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.sections.base import Fraction, Section

# Names of `checkpoint` that are no checkpoints: the model is created when training starts.
CREATED = ("scratch", "cnn-attention", "cnn-lstm", "cnn-rnn", "cnn-git")
REGISTERED = "models:/"  # prefix of a checkpoint that is a registered version


class Scratch(Section):
    """The sizes of a small GIT that is built on the spot."""

    image_size: Annotated[int, Field(ge=8, le=4096)]
    patch_size: Annotated[int, Field(ge=1, le=256)]
    hidden_size: Annotated[int, Field(ge=8, le=4096)]
    heads: Annotated[int, Field(ge=1, le=64)]
    image_layers: Annotated[int, Field(ge=1, le=48)]
    text_layers: Annotated[int, Field(ge=1, le=48)]
    vocabulary: Annotated[int, Field(ge=64, le=200_000)]
    dropout: Fraction

    @model_validator(mode="after")
    def _divides(self) -> Scratch:
        if self.image_size % self.patch_size:
            raise ValueError("`image_size` must be a multiple of `patch_size`")
        if self.hidden_size % self.heads:
            raise ValueError("`hidden_size` must be a multiple of `heads`")
        return self


class Lora(Section):
    """Low-rank changes in place of the weights."""

    rank: Annotated[int, Field(ge=0, le=1024)]
    alpha: Annotated[float, Field(gt=0, le=10_000)]
    dropout: Fraction


class Augmentation(Section):
    """How training pictures are changed at random."""

    crop: Annotated[float, Field(ge=0, le=0.9)]
    colour: Fraction
    mirror: bool

    @property
    def is_on(self) -> bool:
        """Whether pictures are changed at all."""
        return self.crop > 0 or self.colour > 0 or self.mirror


class SelfCritical(Section):
    """Training on the metric itself, after the epochs with cross-entropy."""

    epochs: Annotated[int, Field(ge=0, le=10_000)]
    samples: Annotated[int, Field(ge=2, le=100)]
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, le=1)]
    reward: Literal["CIDEr-D", "ROUGE-L"]
    cross_entropy: Annotated[float, Field(gt=0, lt=1)]
    least_distinct: Annotated[float, Field(ge=0, le=1)]


class Finetune(Section):
    """What is trained, from where, and how long."""

    checkpoint: Annotated[str, Field(min_length=1)]
    revision: str | None
    new_tokens: Annotated[int, Field(ge=0, le=100_000)]
    scratch: Scratch
    freeze: Literal["none", "image_encoder"]
    lora: Lora
    epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    accumulation: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)]
    captions_per_picture: Literal["all"] | Annotated[int, Field(ge=1, le=1000)]
    augmentation: Augmentation
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, le=1)]
    schedule: Literal["cosine", "linear", "constant_with_warmup"]
    warmup: Fraction
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)]
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    max_tokens: Annotated[int, Field(ge=4, le=1024)]
    best_by: Literal["auto", "cider", "loss"]
    validation_captions: Annotated[int, Field(ge=0, le=1_000_000)]
    patience: Annotated[int, Field(ge=0, le=10_000)]
    self_critical: SelfCritical
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @model_validator(mode="after")
    def _a_step_is_made_of_equal_parts(self) -> Finetune:
        if self.accumulation != "auto" and self.batch_size % self.accumulation:
            raise ValueError(
                f"`accumulation: {self.accumulation}` does not divide `batch_size` {self.batch_size}; make it a"
                " divisor, or auto"
            )
        return self

    @model_validator(mode="after")
    def _what_is_judged_by_captions_has_some(self) -> Finetune:
        if self.best_by == "cider" and not self.validation_captions:
            raise ValueError("`best_by: cider` needs captions; set `validation_captions` above 0, or `best_by` to loss")
        return self

    @model_validator(mode="after")
    def _self_critical_epochs_are_judged_by_captions(self) -> Finetune:
        if self.self_critical.epochs and not self.validation_captions:
            raise ValueError(
                "`self_critical.epochs` needs captions to choose its best epoch by; set `validation_captions` above 0,"
                " or `self_critical.epochs` to 0"
            )
        return self

    @model_validator(mode="after")
    def _what_is_frozen_has_learned_something(self) -> Finetune:
        if self.checkpoint == "scratch" and self.freeze != "none":
            raise ValueError(
                f"`freeze: {self.freeze}` would keep the random weights of `scratch`; set `freeze` to none"
            )
        return self

    @model_validator(mode="after")
    def _what_lora_changes_has_learned_something(self) -> Finetune:
        if self.checkpoint in CREATED and self.lora.rank:
            raise ValueError(f"`lora.rank` would keep the random weights of `{self.checkpoint}`; set it to 0")
        return self

    @model_validator(mode="after")
    def _scratch_learns_all_words(self) -> Finetune:
        if self.checkpoint in CREATED and self.new_tokens:
            name = self.checkpoint
            raise ValueError(f"`new_tokens` is for a checkpoint: `{name}` has all words of the captions; set it to 0")
        return self

    @model_validator(mode="after")
    def _a_hub_name_is_pinned(self) -> Finetune:
        if self.checkpoint in CREATED or Path(self.checkpoint).is_dir():
            return self
        if self.checkpoint.startswith(REGISTERED):
            if not re.fullmatch(rf"{REGISTERED}[^/@]+/\d+", self.checkpoint):
                raise ValueError(
                    f"`checkpoint` {self.checkpoint!r} may change its version; use a version number, like"
                    " models:/image-captioning/3"
                )
            return self
        if Path(f"{self.checkpoint}.dvc").is_file():
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is tracked by DVC but not in the workspace; fetch it with"
                f" `dvc pull {self.checkpoint}.dvc` (with `--remote sample` if it comes with the repository)"
            )
        if self.checkpoint.startswith("cnn-") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.checkpoint):
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is neither one of {', '.join(CREATED)}, nor a folder here,"
                " nor a hub name like microsoft/git-base; correct it"
            )
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is not a folder, so it is read as a hub name, and `revision`"
                " must pin it: copy the 40-digit commit from 'Files and versions' of the model's page"
            )
        return self
