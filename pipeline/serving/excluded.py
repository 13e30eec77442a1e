"""Exclude pictures: copies in data/excluded, which `ingest.exclude` names. Build leaves out what is similar to them."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.images import SUFFIXES, identity
from pipeline.runtime.atomic_files import swapped_in

FOLDER = Path("data/excluded")


def exclude(picture: bytes) -> Path:
    """Copy a picture into the folder and return the file; the next build leaves it out."""
    target = FOLDER / f"{identity(picture)}.jpg"  # build looks at the content, not at the name
    with swapped_in(target) as (place,):
        place.write_bytes(picture)
    return target


def excluded_files() -> list[Path]:
    """Return the pictures in the folder."""
    return sorted(file for file in FOLDER.glob("*") if file.suffix.lower() in SUFFIXES)


def include(file: Path) -> None:
    """Remove a picture from the folder; the next build uses it again."""
    file.unlink(missing_ok=True)
