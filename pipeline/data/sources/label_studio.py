"""The layout of Label Studio's exports for captioning: JSON and JSON-MIN, with any names of its tags.

A labelling interface for captions has an `Image` and a `TextArea` tag. Their names and the field of the task with the
picture differ by project, so they are read from the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.config.errors import DataError
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files, MemberError, suffix
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout

_HEAD, _MAX_BYTES = 2**16, 2**28
# Keys that every task of an export has; JSON-MIN has no `annotations`.
_TASK = re.compile(rb'"(?:annotation_id|annotations)"\s*:')
# Label Studio puts eight hexadecimal digits and a dash before the name of a file that was uploaded.
_UPLOADED = re.compile(r"^.*/data/upload/\d+/[0-9a-f]{8}-")
_LOCAL = "/data/local-files/?d="  # before the path of a file in local storage
_CAPTION_FIELD = re.compile(r"caption|text|descri|comment", re.IGNORECASE)
_NOT_CAPTIONS = {"annotator", "created_at", "updated_at"}


def _recognises(files: Files, index: int) -> bool:
    try:
        head = files.read(index, _MAX_BYTES)[:_HEAD]
    except MemberError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[") and bool(_TASK.search(head))


def _read(file: CaptionsFile) -> Captions:
    """Read the tasks, which are numbered from 1; a task without annotation counts as one row with an empty caption."""
    encoding, tasks = file.json()
    if not isinstance(tasks, list):
        raise DataError(f"{file.place}: is not a list of tasks; export the project again as JSON or JSON-MIN")

    def rows() -> Iterator[CaptionRow]:
        for number, task in enumerate(tasks, start=1):
            if not isinstance(task, dict):
                yield file.row(number, None, None)
                continue
            data = task.get("data") if "annotations" in task else task
            picture = _picture(data)
            texts = _full(task) if "annotations" in task else _minimal(task)
            for text in texts or [""]:
                yield file.row(number, picture, text)

    return Captions(encoding, rows())


def _picture(data: object) -> str | None:
    """Return the path of the picture: the first field of a task that names one."""
    for value in data.values() if isinstance(data, dict) else ():
        path = value.removeprefix(_LOCAL) if isinstance(value, str) else ""
        if suffix(path.partition("?")[0]) in SUFFIXES:
            return _UPLOADED.sub("", path)
    return None


def _full(task: dict[str, Any]) -> list[str]:
    """Return the texts of all annotations that were not cancelled."""
    annotations = task["annotations"] if isinstance(task["annotations"], list) else []
    texts: list[str] = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for region in annotation.get("result") or []:
            if isinstance(region, dict) and region.get("type") == "textarea":
                texts += _strings(region.get("value", {}).get("text"))
    return texts


def _minimal(task: dict[str, Any]) -> list[str]:
    """Return the texts of a task in JSON-MIN, which does not say which fields are annotations.

    They are the fields called like a caption, or else all texts but the picture and the facts about the annotation.
    """
    texts = {key: _strings(value) for key, value in task.items() if key not in _NOT_CAPTIONS}
    named = [key for key in texts if texts[key] and _CAPTION_FIELD.search(key)]
    others = [key for key in texts if _picture({key: task[key]}) is None]
    return [text for key in named or others for text in texts[key]]


def _strings(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


LAYOUT = Layout(
    name="Label Studio",
    expected="a .json exported by Label Studio",
    suffixes=(".json",),
    recognises=_recognises,
    read=_read,
)
