"""Caption files -> the captions of each picture, in the order of the file.

Formats: JSON Lines (one picture or one caption per line), COCO results (a list of objects with `image_id` and
`caption`), and COCO annotations (an object with such a list in `annotations`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import DataError

_IDS = ("image_id", "id", "file_name", "image")
_ONE = ("caption", "text")


@dataclass(frozen=True)
class Entry:
    """A line, or an item of a list.

    Attributes:
        place: file and line or item, for messages.
        picture: id of the picture; 5 and "5" are the same.
        content: the whole object.
    """

    place: str
    picture: str | int
    content: dict[str, Any]


def read_predictions(path: Path, system: str | None = None) -> dict[str | int, list[str]]:
    """Return the predicted captions by picture id, one or more per picture, the likeliest first.

    Args:
        path: JSON Lines with `caption` or `captions`, or COCO results.
        system: which system to read if `captions` has those of several systems by name.

    Raises:
        DataError: the file can't be read, a line has no id or no caption, or two lines have the same picture.
    """
    found: dict[str | int, list[str]] = {}
    places: dict[str, str] = {}
    for entry in _entries(path):
        if (first := places.setdefault(str(entry.picture), entry.place)) != entry.place:
            raise DataError(
                f"{entry.place}: has the same picture, {entry.picture!r}, as {first}; keep one of them, or put the"
                " captions of a picture into one list, `captions`"
            )
        captions = _captions(entry, ("captions", *_ONE), system)
        if not captions:
            raise DataError(f"{entry.place}: has an empty list of captions; add one or more")
        found[entry.picture] = captions
    return found


def read_references(path: Path, beside_predictions: bool = False) -> dict[str, list[str]]:
    """Return the references by picture id (as text); several lines of a picture add up.

    Args:
        path: JSON Lines with `references`, `captions` (a list), `caption` or `text`, or COCO annotations.
        beside_predictions: whether the file also has the predictions, so that only `references` is read.

    Raises:
        DataError: the file can't be read, or a line has no id or no caption.
    """
    keys = ("references",) if beside_predictions else ("references", "captions", *_ONE)
    found: dict[str, list[str]] = {}
    for entry in _entries(path):
        found.setdefault(str(entry.picture), []).extend(_captions(entry, keys, None))
    return found


def _captions(entry: Entry, keys: tuple[str, ...], system: str | None) -> list[str]:
    key = next((key for key in keys if key in entry.content), None)
    if key is None:
        raise DataError(f"{entry.place}: found the keys {_listed(entry.content)}; add one of {_listed(keys)}")
    value = entry.content[key]
    if isinstance(value, dict):
        value = _of_system(entry.place, value, system)
    captions = value if isinstance(value, list) else [value]
    for caption in captions:
        if not isinstance(caption, str):
            raise DataError(f"{entry.place}: {key}: found {json.dumps(caption)[:80]}; make it text, in quotes")
    return captions


def _of_system(place: str, systems: dict[str, Any], system: str | None) -> Any:
    if system is None and len(systems) == 1:
        return next(iter(systems.values()))
    if system not in systems:
        asked = "choose one with --system" if system is None else f"--system {system} is not among them"
        raise DataError(f"{place}: has captions of {_listed(systems)}; {asked}")
    return systems[system]


def _entries(path: Path) -> Iterator[Entry]:
    for place, content in _items(path):
        if not isinstance(content, dict):
            raise DataError(f"{place}: found {json.dumps(content)[:80]}; make it an object with an id and captions")
        key = next((key for key in _IDS if key in content), None)
        if key is None:
            raise DataError(f"{place}: found the keys {_listed(content)}; add the picture's id, one of {_listed(_IDS)}")
        picture = content[key]
        if isinstance(picture, bool) or not isinstance(picture, (str, int)):
            raise DataError(f"{place}: {key}: found {json.dumps(picture)[:80]}; make it a number or text")
        yield Entry(place, picture, content)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each line or list item."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of captions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1}: is not UTF-8; save the file as UTF-8") from None
    whole = _whole(text)
    if whole is not None:
        yield from ((f"{path}: item {i}", item) for i, item in enumerate(whole, start=1))
        return
    # Only a line feed ends a line: captions may contain U+2028, where `str.splitlines` would split.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}: line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: is not JSON ({error}); correct the line") from None


def _whole(text: str) -> list[Any] | None:
    """Return the items of a file that is one JSON value; None for JSON Lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = value.get("annotations") if isinstance(value, dict) else value
    return items if isinstance(items, list) else None


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
