"""Find the raw bytes of a picture of the data set in data/raw: a correction stores them, so that its hash agrees."""

from __future__ import annotations

from pipeline.config import paths
from pipeline.config.errors import DataError, PipelineError
from pipeline.data.audit import FILE_REASONS
from pipeline.data.dataset import Example
from pipeline.data.images import identity
from pipeline.data.sources.archive import open_files
from pipeline.data.sources.member import MemberError
from pipeline.serving.corrections import MAX_PICTURE_BYTES


def raw_picture(example: Example) -> bytes:
    """Return the raw bytes of an example's picture.

    Raises:
        DataError: no source has them (any more), or the bucket that has them can't be read.
    """
    why = ""
    for source, origin in zip(example.sources, example.origins, strict=True):
        if not (paths.RAW / source).is_dir():
            continue
        with open_files(paths.RAW / source) as files:
            for index, member in enumerate(files.members):
                if member.place != origin:
                    continue
                try:
                    data = files.read(index, MAX_PICTURE_BYTES)
                except MemberError as error:
                    why = f"{paths.RAW / source}: {origin}: {FILE_REASONS[error.reason]}"
                    if error.reason == "too_many_bytes":
                        why += f"; a correction's picture may have {MAX_PICTURE_BYTES / 1e6:.0f} MB"
                    continue
                except PipelineError as error:  # of a bucket
                    why = str(error)
                    continue
                if identity(data) == example.sha256:
                    return data
    if not why:
        why = (
            f"{paths.RAW / example.sources[0]}: does not have {example.origins[0]} as the data set has it;"
            " run `dvc checkout`, or `dvc repro build` if the source changed"
        )
    raise DataError(why)
