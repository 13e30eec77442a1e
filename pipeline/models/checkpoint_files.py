"""Check a stranger's checkpoint before anything large is built: its files, the shapes of its weights, and its parts.

Everything here costs milliseconds and little memory. `config.json` is compared with the header of the weights, so a
config that asks for more than the weights hold is refused before the model is built.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline.config.errors import ConfigError
from pipeline.models.base import Checkpoint
from pipeline.models.inputs import resize_and_crop
from pipeline.models.vocabulary import unknown_token_missing

MAX_IMAGE_SIZE = 4096  # pixels per side
MAX_IMAGE_TOKENS = 16_384
MAX_LAYERS = 256

_MAX_JSON_BYTES = 64 * 2**20  # a tokenizer of 250,000 tokens has 17 MB
_MAX_HEADER_BYTES = 16 * 2**20
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_AGAIN = "download or copy the checkpoint again"

Shape = tuple[int, ...]


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        ConfigError: the file is missing or too large, or is not a JSON object.
    """
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ConfigError(f"{file}: is larger than {_MAX_JSON_BYTES // 2**20} MB; {_AGAIN}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; name a folder with a checkpoint") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: is no JSON object; {_AGAIN}")
    return value


def check_json_sizes(folder: Path) -> None:
    """Check that no JSON or text file is too large to parse.

    Raises:
        ConfigError: one is; names it.
    """
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.txt")]):
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ConfigError(f"{file}: is larger than {_MAX_JSON_BYTES // 2**20} MB; {_AGAIN}")


def weight_shapes(folder: Path) -> dict[str, Shape]:
    """Return the shape of every tensor in the weights, by its name; only headers are read.

    For the format see https://huggingface.co/docs/safetensors: 8 bytes with the length of the header, the header as
    JSON, the data.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    shapes: dict[str, Shape] = {}
    for file in _weights_files(folder):
        header = _read_header(file)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
                raise ConfigError(f"{file}: the header of {name} is damaged; {_AGAIN}")
            shapes[name] = tuple(shape)
    return shapes


def _weights_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads: one, or the shards that the index names."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    names = read_object(index).get("weight_map")
    shards = set(names.values()) if isinstance(names, dict) and all(isinstance(n, str) for n in names.values()) else ()
    if not shards or any(Path(name).name != name for name in shards):
        raise ConfigError(f"{index}: names no files of this folder; {_AGAIN}")
    return [folder / name for name in sorted(shards)]


def _read_header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; {_AGAIN}") from None
    except (ValueError, RecursionError, struct.error):
        header = None
    if not isinstance(header, dict):
        raise ConfigError(f"{file}: the header of the weights is damaged; {_AGAIN}")
    return header


def check_shapes(folder: Path, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Compare the weights that `config.json` asks for with those that the files hold.

    Args:
        folder: the checkpoint, for messages.
        expected: the shapes by `config.json`.
        found: the shapes by the headers of the weights.

    Raises:
        ConfigError: a tensor is missing or has another shape; names the first.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise ConfigError(lacking(folder, missing))
    wrong = [name for name, shape in expected.items() if found[name] != shape]
    if wrong:
        first = wrong[0]
        raise ConfigError(
            f"{folder}: config.json does not fit the weights: {first} is {_by(expected[first])} by config.json and"
            f" {_by(found[first])} in the weights ({len(wrong)} such tensors); {_AGAIN}"
        )


def lacking(folder: Path, missing: Sequence[str]) -> str:
    """Return the message about tensors that the weights lack."""
    return (
        f"{folder}: its weights lack {len(missing)} tensors that its config.json asks for"
        f" ({', '.join(sorted(missing)[:3])}, ...); {_AGAIN}"
    )


def check_size(file: Path, name: str, value: object, most: int) -> None:
    """Check that a number of a config is an integer between 1 and `most`.

    Raises:
        ConfigError: it is not; names the file and the number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{file}: {name}: found {str(value)[:40]}, allowed are 1 to {most:,}; {_AGAIN}")


def check_image_processor(folder: Path, checkpoint: Checkpoint) -> None:
    """Check that the image processor makes the pictures that the model takes.

    Raises:
        ConfigError: its sizes do not fit `config.json`, or its mean or deviation is not one number per channel.
    """
    processor, side = checkpoint.image_processor, checkpoint.image_size
    check_size(folder / "config.json", "image_size", side, MAX_IMAGE_SIZE)
    where = f"{folder}: image processor"
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        numbers = list(values) if isinstance(values, list | tuple) else []
        if len(numbers) != 3 or not all(_is_finite(number) for number in numbers):
            raise ConfigError(f"{where}: {name}: found {str(values)[:60]}, expected three numbers; {_AGAIN}")
        if name == "image_std" and min(numbers) <= 0:
            raise ConfigError(f"{where}: {name}: found {numbers}, expected numbers above 0; {_AGAIN}")
    if not _is_finite(processor.rescale_factor) or processor.rescale_factor <= 0:
        raise ConfigError(f"{where}: rescale_factor: found {processor.rescale_factor!r}, expected 1/255; {_AGAIN}")
    settings = processor.to_dict()
    # Pictures of this size are made for every picture, so a huge size must be refused before the first one.
    for name in ("size", "crop_size"):
        sizes = settings.get(name)
        largest = max((value for value in _numbers(sizes)), default=0)
        if largest > 4 * side:
            raise ConfigError(f"{where}: {name}: {sizes} does not fit image_size {side} of config.json; {_AGAIN}")
    try:
        made = tuple(resize_and_crop(processor, [Image.new("RGB", (side + 3, side // 2 + 1))]).shape)
    except Exception as error:  # the library raises many kinds on unusual settings
        raise ConfigError(f"{where}: fails with {type(error).__name__}: {str(error)[:200]}; {_AGAIN}") from None
    if made != (1, 3, side, side):
        raise ConfigError(
            f"{where}: makes pictures of {_by(made[2:])} pixels, but image_size in config.json is {side}; set crop_size"
            f" to {side}, or {_AGAIN}"
        )


def check_tokenizer(folder: Path, checkpoint: Checkpoint, vocabulary: int, begin: object, end: object) -> None:
    """Check that the tokenizer fits the model's vocabulary and the marks that generation begins and ends with.

    Args:
        folder: the checkpoint, for messages.
        checkpoint: has the tokenizer.
        vocabulary: the number of tokens that the model knows.
        begin: the id of the begin mark in generation.
        end: the id of the end mark, or a list of ids.

    Raises:
        ConfigError: they do not fit; names the setting.
    """
    tokenizer = checkpoint.tokenizer
    ends = end if isinstance(end, list) else [end]
    for name, ids in (("bos_token_id", [begin]), ("eos_token_id", ends), ("pad_token_id", [tokenizer.pad_token_id])):
        for number in ids or [None]:
            if not isinstance(number, int) or not 0 <= number < vocabulary:
                found = "null" if number is None else str(number)[:40]
                raise ConfigError(
                    f"{folder}: {name}: found {found}, expected a token id below vocab_size {vocabulary:,}; set it in"
                    f" config.json and generation_config.json, or {_AGAIN}"
                )
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    if unknown and tokenizer.backend_tokenizer.token_to_id(unknown) is None:
        raise unknown_token_missing(folder / "tokenizer.json", unknown)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        raise ConfigError(
            f"{folder}: the tokenizer has ids up to {largest:,}, but vocab_size in config.json is {vocabulary:,};"
            f" {_AGAIN}"
        )
    ids = tokenizer("a")["input_ids"]
    if not ids or ids[0] != begin or ids[-1] not in ends:
        raise ConfigError(
            f"{folder}: the tokenizer encodes captions as {ids[:1]} ... {ids[-1:]}, but generation begins with"
            f" {begin} and ends with {end}; {_AGAIN}"
        )


def check_caption_length(folder: Path, length: object, positions: int) -> None:
    """Check the `max_length` that captions have if no other length is asked for.

    Args:
        folder: the checkpoint, for messages.
        length: of `generation_config.json`, in tokens; None if it has none.
        positions: the number of text positions of the model.

    Raises:
        ConfigError: it is not between 2 (the begin mark and a token) and `positions`.
    """
    if length is None:
        return
    if not isinstance(length, int) or isinstance(length, bool) or not 2 <= length <= positions:
        raise ConfigError(
            f"{folder / 'generation_config.json'}: max_length: found {str(length)[:40]}, allowed are 2 to"
            f" {positions:,}; {_AGAIN}"
        )


def meta_shapes(model: torch.nn.Module) -> dict[str, Shape]:
    """Return the shape of every tensor of a model, which may be on the device `meta`."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _numbers(value: object) -> list[float]:
    values = value.values() if isinstance(value, dict) else [value]
    return [number for number in values if isinstance(number, int | float)]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
