"""The layout `corrections`: `corrections.jsonl`, written by the web page (`pipeline/serving/corrections.py`).

One line is one `Correction`. The pictures are beside it, each named by the SHA-256 of its bytes. The rules:

* The last word of a person about a text counts. A text that was undone or replaced by its author is left out.
* A person's own words (`edit`, `add`) always stay, whatever others say.
* A text that somebody replaced (`edit`) or rejected (`reject`) is withdrawn from the picture, in every source, unless
  it is also a person's own words. So it does not matter who comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.dataset import RawCaption, Withdrawn
from pipeline.data.sources.encodings import decode
from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named
from pipeline.data.text import clean

FILE_NAME = "corrections.jsonl"
PICTURES = "pictures"  # the folder of the pictures, beside the file

Action = Literal["accept", "edit", "reject", "add", "undo"]


class Correction(BaseModel):
    """What a person said about a caption of a picture.

    Attributes:
        id: identifies the save, so that a repeated save is recognised.
        at: time in UTC, ISO 8601.
        who: the person.
        action: `accept` (the shown caption is right), `edit` (`caption` replaces it), `reject` (it is wrong), `add`
            (`caption` is another right one) or `undo` (the correction `undoes` was a mistake).
        sha256: of the picture's raw bytes.
        picture: path of the picture from the file's folder; None if the action needs none (`reject`, `undo`).
        caption: the right caption; None for `reject` and `undo`.
        said: the caption that was shown; None if there was none.
        model: name of the model that said it; None if it was a caption of the data set.
        version: version of that model.
        undoes: `id` of a correction by the same person.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    id: Annotated[str, Field(min_length=1)]
    at: str
    who: Annotated[str, Field(min_length=1)]
    action: Action
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    picture: str | None = None
    caption: str | None = None
    said: str | None = None
    model: str | None = None
    version: int | None = None
    undoes: str | None = None


def complete_lines(data: bytes) -> bytes:
    """Return the bytes up to the last line feed: what follows was cut off while it was written."""
    return data[: data.rfind(b"\n") + 1]


def parse(line: str) -> Correction | None:
    """Return the correction in a line; None if it is not one."""
    try:
        return Correction.model_validate_json(line)
    except ValidationError:
        return None


def left_out(corrections: Sequence[Correction]) -> list[str | None]:
    """Return for each correction, in the order of the file, why it is no caption of the data set; None if it is one.

    The reasons are codes of `audit.ROW_REASONS`.
    """
    reasons: list[str | None] = [None] * len(corrections)
    by_id = {correction.id: correction for correction in corrections}
    undone = set()
    for correction in corrections:
        target = by_id.get(correction.undoes or "")
        if correction.action == "undo" and target and target.who == correction.who:
            undone.add(target.id)
    last: dict[tuple[str, str, str | None], int] = {}  # person, picture, shown text -> the last word
    for index, correction in enumerate(corrections):
        if correction.action == "undo":
            reasons[index] = "no_caption_of_its_own"
        elif correction.id in undone:
            reasons[index] = "superseded"
        elif correction.action != "add":
            key = correction.who, correction.sha256, correction.said and clean(correction.said)
            if key in last:
                reasons[last[key]] = "superseded"
            last[key] = index
    gone = withdrawn_texts(corrections, reasons)
    for index, correction in enumerate(corrections):
        if reasons[index] is None and correction.action == "reject":
            reasons[index] = "no_caption_of_its_own"
        if reasons[index] is None and (correction.sha256, clean(correction.caption or "")) in gone:
            reasons[index] = "corrected"
    return reasons


def withdrawn_texts(corrections: Sequence[Correction], reasons: Sequence[str | None]) -> dict[tuple[str, str], int]:
    """Return the texts that were replaced or rejected: SHA-256 and cleaned text -> index of the first such correction.

    Args:
        corrections: in the order of the file.
        reasons: those of `left_out`; superseded corrections withdraw nothing.
    """
    valid = [(index, correction) for index, correction in enumerate(corrections) if reasons[index] != "superseded"]
    own_words = {(c.sha256, clean(c.caption or "")) for _, c in valid if c.action in ("edit", "add")}
    gone: dict[tuple[str, str], int] = {}
    for index, correction in valid:
        text = correction.sha256, clean(correction.said or "")
        if correction.action in ("edit", "reject") and text[1] and text not in own_words:
            gone.setdefault(text, index)
    return gone


def _read(file: CaptionsFile) -> Captions:
    text, encoding = decode(complete_lines(file.data), file.place)
    numbers, parsed = [], []
    rows: dict[int, CaptionRow] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if correction := parse(line):
            numbers.append(number)
            parsed.append(correction)
        else:
            rows[number] = file.row(number, None, None)
    reasons = left_out(parsed)
    for number, correction, reason in zip(numbers, parsed, reasons, strict=True):
        raw = RawCaption(correction.caption or "", file.member, number)
        rows[number] = CaptionRow(correction.picture or correction.sha256, raw, file.folder, set_aside=reason)
    gone = [
        Withdrawn(sha256, text, file.member, numbers[index])
        for (sha256, text), index in withdrawn_texts(parsed, reasons).items()
    ]
    return Captions(encoding, _in_order(rows), gone)


def _in_order(rows: dict[int, CaptionRow]) -> Iterator[CaptionRow]:
    return (rows[number] for number in sorted(rows))


LAYOUT = Layout(
    name="corrections",
    expected=f"{FILE_NAME} (the web page's corrections)",
    suffixes=(".jsonl",),
    recognises=named(r"corrections\.jsonl"),
    read=_read,
    may_be_empty=True,
)
