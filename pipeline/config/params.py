"""`params.yaml`, typed and checked: each section becomes a frozen object; a wrong value stops the run at once.

The comments in `params.yaml` say what a param does. `sections/` has the types and
allowed ranges, a module a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from pipeline.config import paths
from pipeline.config.bounded_yaml import read_yaml
from pipeline.config.errors import ConfigError
from pipeline.config.sections.base import Section
from pipeline.config.sections.build import Build
from pipeline.config.sections.compare import Compare
from pipeline.config.sections.evaluate import Evaluate
from pipeline.config.sections.finetune import Finetune
from pipeline.config.sections.flow import Flow
from pipeline.config.sections.ingest import Ingest
from pipeline.config.sections.promote import Promote
from pipeline.config.sections.register import Register
from pipeline.config.sections.retrain import Retrain
from pipeline.config.sections.runtime import Runtime
from pipeline.config.sections.serving import Serving

# Keys of older versions of params.yaml, and where they are now.
MOVED = {
    "finetune.state_minutes": "runtime.state_minutes",
    "finetune.feature_cache_gb": "runtime.feature_cache_gb",
    "finetune.launch": "runtime.launch",
    "evaluate.batch_size": "runtime.caption_batch_size",
    "evaluate.beams": "evaluate.generation.beams",
}

# Limits of an error message.
_MOST_SHOWN = 20  # wrong values
_MOST_CHARACTERS = 100  # of a value or key


class Params(Section):
    """All of `params.yaml`."""

    ingest: Ingest
    build: Build
    finetune: Finetune
    compare: Compare
    evaluate: Evaluate
    register_: Annotated[Register, Field(alias="register")]
    promote: Promote
    runtime: Runtime
    flow: Flow
    retrain: Retrain
    serving: Serving

    @model_validator(mode="after")
    def _captions_are_there(self) -> Params:
        if self.evaluate.decoding.compares and not self.register_.training_captions:
            raise ValueError(
                f"evaluate.decoding.method: found {self.evaluate.decoding.method}, which compares with the training"
                " captions, but register.training_captions is false; set one to beam or the other to true"
            )
        return self

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

    Raises:
        ConfigError: the file is missing, is not YAML or exceeds a limit (see `read_yaml`), or a key or value is
            wrong. The message names each key, the value found, and what is allowed.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found in {Path.cwd()}; run this in the root of the repository") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        more = [f"{len(problems) - _MOST_SHOWN} more wrong values"] if len(problems) > _MOST_SHOWN else []
        described = [_describe(path, problem) for problem in problems[:_MOST_SHOWN]]
        raise ConfigError("; ".join(described + more)) from None


def _describe(path: Path, problem: object) -> str:
    assert isinstance(problem, dict)
    key = _shortened(".".join(str(part) for part in problem["loc"]))
    place = f"{path}: {key}" if key else f"{path}"
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden" and key in MOVED:
        return f"{place}: moved to {MOVED[key]}; move the value there"
    if kind == "extra_forbidden":
        return f"{place}: unknown key; remove it or correct its spelling"
    if kind == "missing":
        return f"{place}: is missing; add it (the shipped params.yaml has every key)"
    if kind == "value_error":
        return f"{place}: {message.removeprefix('Value error, ')}"
    return f"{place}: found {_shortened(repr(problem['input']))}; {message[0].lower()}{message[1:]}"


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
