"""Files of captions, as people have them -> the captions of each picture, in the order of the file.

Read are JSON Lines (a picture a line, or a caption a line) and COCO's two formats: results, a list of `image_id` and
`caption`, and annotations, an object whose `annotations` are such.
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
    """What a line, or an item of a list, says of a picture.

    Attributes:
        place: where it stands, for messages.
        picture: its id; 5 and "5" are the same.
        content: all of it.
    """

    place: str
    picture: str | int
    content: dict[str, Any]


def read_predictions(path: Path, system: str | None = None) -> dict[str | int, list[str]]:
    """The captions that are to be scored, of each picture one or more, the likeliest first, by the picture's id.

    Args:
        path: JSON Lines with `caption` or `captions`, or COCO's results.
        system: of which `captions` are meant, where they are of several systems by name.

    Raises:
        DataError: the file can't be read, a line has no id or no caption, or two lines are of the same picture.
    """
    found: dict[str | int, list[str]] = {}
    places: dict[str, str] = {}
    for entry in _entries(path):
        if (first := places.setdefault(str(entry.picture), entry.place)) != entry.place:
            raise DataError(
                f"{entry.place}: is of {entry.picture!r}, as {first} is already; keep one of the two, or put several"
                " captions of a picture into one list, `captions`"
            )
        captions = _captions(entry, ("captions", *_ONE), system)
        if not captions:
            raise DataError(f"{entry.place}: has an empty list of captions; give one or more")
        found[entry.picture] = captions
    return found


def read_references(path: Path, beside_predictions: bool = False) -> dict[str, list[str]]:
    """What people say of each picture, by its id as text; several lines of a picture add up.

    Args:
        path: JSON Lines with `references`, `captions` (a list), `caption` or `text`, or COCO's annotations.
        beside_predictions: the file is that of the predictions, so that only `references` are meant.

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
        asked = "name one with --system" if system is None else f"--system {system} is none of them"
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
    """Each line or list item, and where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of captions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1}: is no UTF-8; save the file as UTF-8") from None
    whole = _whole(text)
    if whole is not None:
        yield from ((f"{path}: item {i}", item) for i, item in enumerate(whole, start=1))
        return
    # Lines end at a line feed only: captions may hold U+2028 and its like, at which `str.splitlines` would cut.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}: line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: is no JSON ({error}); correct the line") from None


def _whole(text: str) -> list[Any] | None:
    """The items of a file that is one JSON value; None where it is JSON Lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = value.get("annotations") if isinstance(value, dict) else value
    return items if isinstance(items, list) else None


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
