"""Read a YAML file of limited size, depth and number of values.

A parser alone does not limit these: 10,000 open brackets exhaust the stack, and a few nested aliases ("billion laughs")
make a value that no computer can print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from pipeline.config.errors import ConfigError

MAX_BYTES = 2**18
MAX_DEPTH = 32
MAX_VALUES = 10_000  # with each alias counted as all values that it stands for


def read_yaml(path: Path) -> Any:
    """Return the content of a file in YAML 1.2, as DVC reads it: `1e-3` is a number, `no` is a word.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is not YAML or exceeds a limit. The message names the line where it is known.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} kB; remove what is not a setting")
        text = data.decode("utf-8")
        _check_bounds(path, text)
        return YAML(typ="safe", pure=True).load(text)
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; put the file in its place") from None
    # ValueError: Python refuses to convert integers of more than 4,300 digits, and dates like 2026-02-30.
    except (YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: is not valid YAML: {' '.join(str(error).split())[:300]}; correct the line"
        ) from None


def _check_bounds(path: Path, text: str) -> None:
    """Parse without building values, and stop at the first limit.

    Raises:
        ConfigError: a limit is exceeded.
        YAMLError: the text is not YAML.
    """
    values = 0
    sizes: dict[str, int] = {}  # anchor -> number of values below it
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the number of values before it
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = values - before
        elif isinstance(event, AliasEvent):
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
        if isinstance(event, CollectionStartEvent):
            open_nodes.append((event.anchor, values))
        place = f"{path}: line {event.start_mark.line + 1}"
        if len(open_nodes) > MAX_DEPTH:
            raise ConfigError(f"{place}: is nested more than {MAX_DEPTH} deep; correct the line")
        if values > MAX_VALUES:
            raise ConfigError(f"{place}: the file has more than {MAX_VALUES:,} values, aliases included; remove some")
