"""`params.yaml`, typed: each section becomes a frozen object; a value that can't be right stops at once.

The sentence that tells a user what a param does stands beside it in `params.yaml`; here stand the types
and the allowed ranges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import paths
from pipeline.errors import ConfigError

REGISTERED = "models:/"  # begins the name of a checkpoint that is a registered version
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """A section of `params.yaml`: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Ingest(Section):
    """How raw archives are read."""

    sources: Annotated[list[Name], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=16, le=4096)]
    max_pixels: Annotated[int, Field(ge=1)]
    max_set_aside: Annotated[float, Field(ge=0, le=1)]
    exclude: list[Annotated[str, Field(min_length=1)]]

    @model_validator(mode="after")
    def _no_source_twice(self) -> Ingest:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("a source stands twice in `sources`; name each once")
        return self


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
    validation: Fraction
    test: Fraction
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Build:
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` together leave nothing to train on; keep their sum below 1")
        return self


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


class Launch(Section):
    """The processes that train together."""

    processes: Annotated[int, Field(ge=1, le=1024)]
    machines: Annotated[int, Field(ge=1, le=1024)]
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]+$")]
    port: Annotated[int, Field(ge=1, le=65_535)]

    @property
    def together(self) -> int:
        """How many there are on all machines."""
        return self.processes * self.machines


class Finetune(Section):
    """What is trained, from where, and how long."""

    checkpoint: Annotated[str, Field(min_length=1)]
    revision: str | None
    scratch: Scratch
    freeze: Literal["none", "image_encoder"]
    lora: Lora
    feature_cache_gb: Annotated[float, Field(ge=0, le=100_000)]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    accumulation: Annotated[int, Field(ge=1, le=65_536)]
    captions_per_picture: Literal["all"] | Annotated[int, Field(ge=1, le=1000)]
    augmentation: Augmentation
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    schedule: Literal["cosine", "linear", "constant_with_warmup"]
    warmup: Fraction
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)]
    precision: Literal["auto", "float32", "bfloat16"]
    gradient_checkpointing: bool
    max_tokens: Annotated[int, Field(ge=4, le=1024)]
    best_by: Literal["auto", "cider", "loss"]
    validation_captions: Annotated[int, Field(ge=0, le=1_000_000)]
    patience: Annotated[int, Field(ge=0, le=10_000)]
    state_minutes: Annotated[float, Field(ge=0)]
    launch: Launch
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @model_validator(mode="after")
    def _a_step_is_made_of_equal_parts(self) -> Finetune:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"`accumulation: {self.accumulation}` does not divide `batch_size` {self.batch_size}; make it a divisor"
            )
        return self

    @model_validator(mode="after")
    def _what_is_judged_by_captions_has_some(self) -> Finetune:
        if self.best_by == "cider" and not self.validation_captions:
            raise ValueError("`best_by: cider` needs captions; set `validation_captions` above 0, or `best_by` to loss")
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
        if self.checkpoint == "scratch" and self.lora.rank:
            raise ValueError("`lora.rank` would keep the random weights of `scratch`; set it to 0")
        return self

    @model_validator(mode="after")
    def _a_hub_name_is_pinned(self) -> Finetune:
        if self.checkpoint == "scratch" or Path(self.checkpoint).is_dir():
            return self
        if self.checkpoint.startswith(REGISTERED):
            if not re.fullmatch(rf"{REGISTERED}[^/@]+/\d+", self.checkpoint):
                raise ValueError(
                    f"`checkpoint` {self.checkpoint!r} is no version that stays the same; name one by its number, like"
                    " models:/image-captioning/3"
                )
            return self
        if Path(f"{self.checkpoint}.dvc").is_file():
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is tracked by DVC but not in its place; bring it with"
                f" `dvc pull {self.checkpoint}.dvc` (for what comes with the repository: `--remote sample`)"
            )
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.checkpoint):
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is neither `scratch`, nor a folder here, nor a hub name like"
                " microsoft/git-base; correct it"
            )
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`checkpoint` {self.checkpoint!r} is no folder here, so it is taken for a hub name, and `revision`"
                " must pin it: copy the 40-digit commit from 'Files and versions' of the model's page"
            )
        return self


class Evaluate(Section):
    """How the fine-tuned model is measured."""

    max_pictures: Annotated[int, Field(ge=1)]
    beams: Annotated[int, Field(ge=1, le=32)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    gallery_pictures: Annotated[int, Field(ge=1, le=10_000)]


class Register(Section):
    """Where the run and the model are kept in MLflow."""

    experiment: Name
    model: Name


class Promote(Section):
    """When a new version takes the place of the champion."""

    metric: Literal["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr"]
    least_gain: Annotated[float, Field(ge=-10, le=10)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    least_pictures: Annotated[int, Field(ge=1, le=1_000_000)]
    least_distinct: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


Minutes = Annotated[float, Field(gt=0, le=1_000_000)]


class Timeouts(Section):
    """After how many minutes each stage, and each step of the flows beside the stages, is ended."""

    ingest: Minutes
    build: Minutes
    finetune: Minutes
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


class Retrain(Section):
    """What the retraining flow starts from, publishes and keeps."""

    start: Literal["base", "champion"]
    publish: bool
    keep: Annotated[int, Field(ge=1, le=100_000)]


class Params(Section):
    """All of `params.yaml`."""

    ingest: Ingest
    build: Build
    finetune: Finetune
    evaluate: Evaluate
    register_: Annotated[Register, Field(alias="register")]
    promote: Promote
    flow: Flow
    retrain: Retrain

    def flat(self, *sections: str) -> dict[str, Any]:
        """The values of some sections by their dotted keys, as MLflow shows them."""
        values: dict[str, Any] = {}
        for section in sections:
            values |= flatten(section, getattr(self, section).model_dump())
        return values


def flatten(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by their dotted keys.

    >>> flatten("a", {"b": 1, "c": {"d": 2}})
    {'a.b': 1, 'a.c.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(f"{prefix}.{key}", value) if isinstance(value, Mapping) else {f"{prefix}.{key}": value}
    return flat


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check `params.yaml`.

    YAML 1.2, as DVC reads it: `1e-3` is a number, `no` is a word.

    Raises:
        ConfigError: the file is missing or is no YAML, or a key or value is wrong; names each key, the
            value found, and what is allowed.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found in {Path.cwd()}; run this in the root of the repository") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}; correct the line") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(path, problem) for problem in error.errors())) from None


def _in_words(path: Path, problem: object) -> str:
    assert isinstance(problem, dict)
    key = ".".join(str(part) for part in problem["loc"])
    place = f"{path}: {key}" if key else f"{path}"
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return f"{place}: unknown key; remove it or correct its spelling"
    if kind == "missing":
        return f"{place}: is missing; add it (the shipped params.yaml has every key)"
    if kind == "value_error":
        return f"{place}: {message.removeprefix('Value error, ')}"
    return f"{place}: found {problem['input']!r}; {message[0].lower()}{message[1:]}"
