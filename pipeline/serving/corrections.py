"""Save people's corrections in data/raw/corrections, a source like any other.

`corrections.jsonl` has one line per correction (`pipeline/data/sources/corrections.py`), and `pictures/` the pictures
that they need, named by the SHA-256 of their bytes. A correction is saved when it is on the disk, see `journal.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.data.images import PictureError, identity, opened
from pipeline.data.sources.corrections import FILE_NAME, PICTURES, Action, Correction, left_out, parse
from pipeline.data.text import clean
from pipeline.runtime.atomic_files import PARTIAL
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.serving.journal import Journal, replace

FOLDER = paths.RAW / "corrections"
_LOCK = paths.WORK / "locks" / "corrections.lock"
MAX_CHARACTERS = 2_000  # of a caption
MAX_NAME_CHARACTERS = 100
MAX_PICTURE_BYTES = 32 * 2**20
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}


@dataclass(frozen=True)
class Said:
    """A caption that a person saw: the text, and the model and version that said it (None: one of the data set)."""

    text: str
    model: str | None = None
    version: int | None = None


class Corrections:
    """The corrections of a workspace. Threads and processes may share the folder."""

    def __init__(
        self,
        folder: Path = FOLDER,
        lock: Path = _LOCK,
        max_pixels: int = 100_000_000,
        budget: MemoryBudget | None = None,
    ) -> None:
        """Open the folder, which need not exist.

        Args:
            folder: see the module.
            lock: outside the folder, because DVC tracks everything in that.
            max_pixels: larger pictures are refused.
            budget: the memory of a picture is reserved in it while the picture is checked.
        """
        self.folder = folder
        self._journal = Journal(folder / FILE_NAME, lock)
        self._max_pixels = max_pixels
        self._budget = budget

    def save(
        self,
        who: str,
        action: Action,
        picture: bytes | str,
        *,
        caption: str | None = None,
        said: Said | None = None,
        undoes: str | None = None,
        key: str | None = None,
    ) -> Correction:
        """Save a correction and return it once it is on the disk.

        The same save twice is one correction: with the same `key`, or if it repeats what still counts.

        Args:
            who: the person.
            action: see `Correction`.
            picture: the raw bytes; for `reject` and `undo` the SHA-256 is enough.
            caption: the right caption.
            said: the caption that was shown.
            undoes: `id` of the correction to undo.
            key: identifies this save; None for a new one.

        Raises:
            DataError: the name, the caption or the picture can't be used.
            TemporaryError: the disk is full; nothing was saved.
        """
        who = checked_text(who, "your name", MAX_NAME_CHARACTERS)
        if action in ("accept", "edit", "add"):
            caption = checked_text(caption or "", "the caption", MAX_CHARACTERS)
        elif caption is not None:
            raise ValueError(f"{action} takes no caption")
        name, data = self._checked_picture(picture, needed=caption is not None)
        wanted = Correction(
            id=key or uuid.uuid4().hex,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            who=who,
            action=action,
            sha256=identity(picture) if isinstance(picture, bytes) else picture,
            picture=name,
            caption=caption,
            said=said.text if said else None,
            model=said.model if said else None,
            version=said.version if said else None,
            undoes=undoes,
        )
        with self._journal.locked():
            if before := _saved_before(wanted, self._read(wanted.id, wanted.sha256)):
                return before
            for left in (self.folder / PICTURES).glob(f".*{PARTIAL}"):  # by a killed writer
                left.unlink()
            if name is not None:
                self._store(self.folder / name, data)
            self._journal.append(wanted.model_dump_json(exclude_none=True))
        return wanted

    def undo(self, correction: Correction) -> Correction:
        """Undo a correction in its author's name, and return the correction that does so."""
        return self.save(correction.who, "undo", correction.sha256, undoes=correction.id, key=f"undo-{correction.id}")

    def read(self) -> list[Correction]:
        """Return all corrections in the order in which they were saved."""
        with self._journal.locked():
            return self._read()

    def counting(self) -> list[Correction]:
        """Return the corrections that count today, without those that were undone or replaced by their author."""
        found = self.read()
        reasons = left_out(found)
        return [one for one, why in zip(found, reasons, strict=True) if why != "superseded" and one.action != "undo"]

    def forget(self, who: str) -> tuple[int, int]:
        """Delete the corrections of a person, and the pictures that no other correction needs.

        Returns:
            how many corrections and how many pictures were deleted.

        Raises:
            DataError: the person has no corrections.
            TemporaryError: the disk is full; nothing was deleted.
        """
        with self._journal.locked():
            lines = [(line, parse(line.decode("utf-8", "replace"))) for line in self._journal.lines()]
            kept = [(line, one) for line, one in lines if one is None or one.who != who]
            if len(kept) < len(lines):
                self._journal.rewrite([line for line, _ in kept])
            needed = {one.picture for _, one in kept if one}
            gone = [file for file in self._pictures() if f"{PICTURES}/{file.name}" not in needed]
            if any(one is None for _, one in kept):  # a damaged line may need any of the others
                own = {one.picture for _, one in lines if one and one.who == who}
                gone = [file for file in gone if f"{PICTURES}/{file.name}" in own]
            for file in gone:  # also those that an interrupted `forget` left
                file.unlink()
            if len(kept) == len(lines):
                names = ", ".join(sorted({one.who for _, one in lines if one})) or "nobody"
                raise DataError(f"{self._journal.file}: has no corrections by {who!r}, only by {names}")
        return len(lines) - len(kept), len(gone)

    def picture(self, correction: Correction) -> bytes | None:
        """Return the picture of a correction; None if it has none."""
        if correction.picture is None or correction.picture != f"{PICTURES}/{Path(correction.picture).name}":
            return None
        with suppress(FileNotFoundError):
            return (self.folder / correction.picture).read_bytes()
        return None

    def _checked_picture(self, picture: bytes | str, needed: bool) -> tuple[str | None, bytes]:
        """Return the path within the folder and the bytes to store; no path if the picture is not needed."""
        if not needed:
            return None, b""
        if isinstance(picture, str):
            raise ValueError("this action needs the picture's bytes")
        if len(picture) > MAX_PICTURE_BYTES:
            raise DataError(f"the picture has more than {MAX_PICTURE_BYTES // 2**20} MB; save a smaller copy of it")
        try:
            with opened(picture, self._max_pixels, self._budget) as photo:
                photo.decode()
        except PictureError as error:
            raise DataError(f"the picture {error}; save it as JPEG or PNG") from None
        return f"{PICTURES}/{identity(picture)}.{picture_suffix(picture)}", picture

    def _pictures(self) -> list[Path]:
        return list((self.folder / PICTURES).glob("*"))

    @contextmanager
    def kept_still(self) -> Iterator[None]:
        """Keep everybody from writing until the block ends, so that the folder can be copied."""
        with self._journal.locked():
            yield

    def _read(self, *words: str) -> list[Correction]:
        """Return all corrections, or those whose line has one of the words."""
        lines = self._journal.lines(*words)
        parsed = (parse(line.decode("utf-8", "replace")) for line in lines)
        return [correction for correction in parsed if correction]

    def _store(self, path: Path, data: bytes) -> None:
        if path.is_file() and path.stat().st_size == len(data) and identity(path.read_bytes()) == path.stem:
            return
        replace(path, data)


def picture_suffix(picture: bytes) -> str:
    """Return the suffix of a picture file by its first bytes; ingest needs one to know it as a picture."""
    for start, suffix in _SUFFIXES.items():
        if picture.startswith(start):
            return suffix
    return {b"WEBP": "webp", b"avif": "avif"}.get(picture[8:12], "heic")  # of the formats that `decode` knows


def _saved_before(wanted: Correction, found: Sequence[Correction]) -> Correction | None:
    """Return the correction that has the same key, or that still counts and says the same."""
    reasons = left_out(found)
    for correction, reason in zip(found, reasons, strict=True):
        if correction.id == wanted.id:
            return correction
        if reason != "superseded" and _content(correction) == _content(wanted):
            return correction
    return None


def _content(correction: Correction) -> tuple[str | None, ...]:
    texts = (clean(text) if text else None for text in (correction.caption, correction.said))
    return correction.who, correction.action, correction.sha256, correction.undoes, *texts


def checked_text(text: str, what: str, most: int) -> str:
    """Return what a person wrote, cleaned.

    Raises:
        DataError: it is empty or has more than `most` characters.
    """
    text = clean(text)
    if not text:
        raise DataError(f"{what} is empty; write something")
    if len(text) > most:
        raise DataError(f"{what} has {len(text):,} characters; shorten it to {most:,}")
    return text
