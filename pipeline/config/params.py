"""`params.yaml`, typed and checked: each section becomes a frozen object; a wrong value stops the run at once.

The comments in `params.yaml` say what a param does. `sections/` has the types and
allowed ranges, a module a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.sections.base import Section
from pipeline.config.sections.build import Build
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
}


class Params(Section):
    """All of `params.yaml`."""

    ingest: Ingest
    build: Build
    finetune: Finetune
    evaluate: Evaluate
    register_: Annotated[Register, Field(alias="register")]
    promote: Promote
    runtime: Runtime
    flow: Flow
    retrain: Retrain
    serving: Serving

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

    It is read as YAML 1.2, as DVC does: `1e-3` is a number, `no` is a word.

    Raises:
        ConfigError: the file is missing or is not YAML, or a key or value is wrong. The message names each key, the
            value found, and what is allowed.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found in {Path.cwd()}; run this in the root of the repository") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}; correct the line") from None
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(path, problem) for problem in error.errors())) from None


def _describe(path: Path, problem: object) -> str:
    assert isinstance(problem, dict)
    key = ".".join(str(part) for part in problem["loc"])
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
    return f"{place}: found {problem['input']!r}; {message[0].lower()}{message[1:]}"
