"""The layout of Argilla's records for captioning, as `dataset.records.to_json` writes them.

The names of the field with the picture and of the questions differ by project, so they are read from the file. The
export does not say which responses are drafts, so all responses count; suggestions, which models make, do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.config.errors import DataError
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files
from pipeline.data.sources.layout import CAPTION_FIELD, CaptionRow, Captions, CaptionsFile, Layout
from pipeline.data.sources.member import MemberError, suffix

_HEAD, _MAX_BYTES = 2**16, 2**28
# Keys of every record, in the order in which they are written; a picture within the fields may be large.
_FIELDS, _RESPONSES = re.compile(rb'"fields"\s*:'), re.compile(rb'"responses"\s*:')
_EMBEDDED = "data:"
_PLACE = "picture"  # metadata that `image-captioning review-queue` adds


def _recognises(files: Files, index: int) -> bool:
    try:
        data = files.read(index, _MAX_BYTES)
    except MemberError:
        return False
    starts = data[:_HEAD].lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    return starts and bool(_FIELDS.search(data[:_HEAD])) and bool(_RESPONSES.search(data))


def _read(file: CaptionsFile) -> Captions:
    """Read the records, numbered from 1; a record without a response counts as one row with an empty caption."""
    encoding, records = file.json()
    if not isinstance(records, list):
        raise DataError(f"{file.place}: is not a list of records; export them again with `records.to_json`")

    def rows() -> Iterator[CaptionRow]:
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                yield file.row(number, None, None)
                continue
            picture = _picture(record.get("fields"))
            if picture is None or picture.startswith(_EMBEDDED):
                picture = _exported(record.get("metadata")) or picture
            if picture and picture.startswith(_EMBEDDED):
                raise DataError(
                    f"{file.place}: record {number} has its picture in the file itself; export the records with"
                    " `records.to_datasets().to_parquet`, and set ingest.columns.caption in params.yaml to the column"
                    " of the responses, like `caption.responses`"
                )
            for text in _texts(record.get("responses")) or [""]:
                yield file.row(number, picture, text)

    return Captions(encoding, rows())


def _picture(fields: object) -> str | None:
    """Return the first field that is a picture: its path, URL or data: URL."""
    for value in fields.values() if isinstance(fields, dict) else ():
        if isinstance(value, str) and (
            value.startswith(f"{_EMBEDDED}image/") or suffix(value.partition("?")[0]) in SUFFIXES
        ):
            return value
    return None


def _exported(metadata: object) -> str | None:
    """Return the path of the picture in a queue that `image-captioning review-queue` wrote; None for other records."""
    path = metadata.get(_PLACE) if isinstance(metadata, dict) else None
    return path if isinstance(path, str) and suffix(path) in SUFFIXES else None


def _texts(responses: object) -> list[str]:
    """Return the responses to the questions that are called like a caption, or else to all questions."""
    answers = responses if isinstance(responses, dict) else {}
    questions = [name for name in answers if CAPTION_FIELD.search(name)] or list(answers)
    return [
        answer["value"]
        for name in questions
        for answer in (answers[name] if isinstance(answers[name], list) else [])
        if isinstance(answer, dict) and isinstance(answer.get("value"), str)
    ]


LAYOUT = Layout(
    name="Argilla",
    expected="a .json of Argilla's records",
    suffixes=(".json",),
    recognises=_recognises,
    read=_read,
)
