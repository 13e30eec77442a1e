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
from pipeline.data.sources.archive import Files
from pipeline.data.sources.layout import CAPTION_FIELD, CaptionRow, Captions, CaptionsFile, Layout
from pipeline.data.sources.member import MemberError, suffix

_HEAD, _MAX_BYTES = 2**16, 2**28
# Keys that every task of an export has; JSON-MIN has no `annotations`.
_TASK = re.compile(rb'"(?:annotation_id|annotations)"\s*:')
# Label Studio puts eight hexadecimal digits and a dash before the name of a file that was uploaded.
_UPLOADED = re.compile(r"^.*/data/upload/\d+/[0-9a-f]{8}-")
_LOCAL = "/data/local-files/?d="  # before the path of a file in local storage
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
        path = value if isinstance(value, str) else ""
        if path.startswith(_LOCAL):  # from a root that only Label Studio knows, so the end of the path counts
            path = f"/{path.removeprefix(_LOCAL)}"
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
        regions = annotation.get("result")
        for region in regions if isinstance(regions, list) else []:
            value = region.get("value") if isinstance(region, dict) and region.get("type") == "textarea" else None
            if isinstance(value, dict):
                texts += _strings(value.get("text"))
    return texts


def _minimal(task: dict[str, Any]) -> list[str]:
    """Return the texts of a task in JSON-MIN, which does not say which fields are annotations.

    They are the fields called like a caption, or else all texts but the picture and the facts about the annotation. The
    picture itself may be called like a caption: Label Studio's template for captioning calls it `captioning`.
    """
    fields = [key for key in task if key not in _NOT_CAPTIONS and _picture({key: task[key]}) is None]
    texts = {key: _strings(task[key]) for key in fields}
    named = [key for key in texts if texts[key] and CAPTION_FIELD.search(key)]
    return [text for key in named or fields for text in texts[key]]


def _strings(value: object) -> list[str]:
    """Return the texts in the answers to a tag: one text, several as `{"text": [...]}`, or a list of such."""
    answers = value if isinstance(value, list) else [value]
    texts = (answer.get("text") if isinstance(answer, dict) else answer for answer in answers)
    return [one for text in texts for one in (text if isinstance(text, list) else [text]) if isinstance(one, str)]


LAYOUT = Layout(
    name="Label Studio",
    expected="a .json exported by Label Studio",
    suffixes=(".json",),
    recognises=_recognises,
    read=_read,
)
