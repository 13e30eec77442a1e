"""What killed processes leave in the workspace: half-written outputs, old outputs moved aside, temporary folders.

Only for a caller that keeps every stage out (see `workspace_lock`): what a running stage writes looks the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import paths
from pipeline.runtime import process_identity
from pipeline.runtime.atomic_files import PARTIAL, REPLACED, recover, remove

TEMPORARY = paths.WORK / "tmp"  # temporary folders of ours, each named by its process
_PLACES = (
    *(paths.RAW, paths.INGEST, paths.INGEST_REPORTS, paths.DATASET.parent, paths.MODEL.parent, paths.REPORTS),
    *(paths.SAID, paths.FEATURES, paths.TRAININGS, paths.STOPPED_INGESTS),
)


def half_written() -> list[Path]:
    """Return the outputs that a killed stage was writing or replacing."""
    return [left for place in _PLACES for end in (PARTIAL, REPLACED) for left in sorted(place.glob(f".*{end}"))]


def put_right(left: Path) -> bool:
    """Remove a half-written output; return whether an old output was restored instead, because the new one is missing.

    Args:
        left: one of `half_written`.
    """
    if left.name.endswith(REPLACED):
        return recover(left.with_name(left.name.removeprefix(".").removesuffix(REPLACED)))
    remove(left)
    return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder in the workspace, in which libraries create their temporary files too.

    A kill leaves it behind, and `dead_temporary_folders` finds it by the process in its name.
    """
    TEMPORARY.mkdir(parents=True, exist_ok=True)
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=f"{process_identity.identity()}_", dir=TEMPORARY.absolute()) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def dead_temporary_folders() -> list[Path]:
    """Return the temporary folders whose process has died."""
    return [
        folder for folder in sorted(TEMPORARY.glob("*")) if not process_identity.is_alive(folder.name.partition("_")[0])
    ]
