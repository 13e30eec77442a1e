"""Which registered versions were trained on a picture or a near-duplicate.

A picture is a file or its SHA-256. Near-duplicates of a hash are known only if that picture was ingested here
(data/ingest) or a version was trained on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.data import images
from pipeline.data.fingerprints import PictureFingerprints, ingested_fingerprints, read_fingerprints
from pipeline.data.near_duplicates import Fingerprints
from pipeline.tracking import downloads, registry

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class FoundVersions(NamedTuple):
    """Which versions were trained on pictures.

    Attributes:
        pictures: for each picture its SHA-256, the versions trained on it, and those trained on a near-duplicate.
        versions: how many versions were checked.
        unknown: versions without a list of training pictures.
    """

    pictures: list[tuple[str, list[int], list[int]]]
    versions: int
    unknown: list[int]


def find_versions(params: Params, pictures: Sequence[str]) -> FoundVersions:
    """Return which registered versions were trained on each picture.

    Args:
        params: all of params.yaml.
        pictures: names of picture files, or SHA-256 hashes (hexadecimal).

    Raises:
        DataError: a picture can't be read.
        TemporaryError: MLflow can't be reached.
    """
    from pipeline.tracking import runs

    model = params.register_.model
    with runs.reachable():
        lists = {
            number: downloads.training_pictures(model, number, params.runtime.model_cache_gb)
            for number in registry.versions(runs.client(), model)
        }
    known = {number: read_fingerprints(path) for number, path in lists.items() if path}
    found = []
    for name in pictures:
        picture = _look_up(name, [*known.values(), ingested_fingerprints()], params)
        (sha256,) = picture.sha256s
        exactly = [number for number, trained in known.items() if sha256 in trained]
        nearly = [
            number
            for number, trained in known.items()
            if number not in exactly and trained.matches(picture, params.build.near_duplicate_bits)
        ]
        found.append((sha256, exactly, nearly))
    return FoundVersions(found, len(lists), [number for number in lists if number not in known])


def report_versions(params: Params, pictures: Sequence[str]) -> str:
    """Print which versions were trained on each picture, and return the last line to print; see `find_versions`."""
    found = find_versions(params, pictures)
    for name, (sha256, exactly, nearly) in zip(pictures, found.pictures, strict=True):
        print(
            f"{name} ({sha256[:12]}...): trained on it: {_numbers(exactly)};"
            f" trained on a near-duplicate: {_numbers(nearly)}"
        )
    unknown = ", ".join(map(str, found.unknown))
    return (
        f"checked {found.versions} versions of {params.register_.model}"
        + (f" (versions {unknown} have no list of training pictures)" if unknown else "")
        + "; to stop using a picture, add it to ingest.exclude and run `dvc repro`"
    )


def _numbers(versions: list[int]) -> str:
    return f"versions {', '.join(map(str, versions))}" if versions else "none"


def _look_up(name: str, known: Sequence[PictureFingerprints], params: Params) -> PictureFingerprints:
    if _SHA256.fullmatch(name) and not Path(name).exists():
        sha256 = name.lower()
        return next(
            (pictures.select([sha256]) for pictures in known if sha256 in pictures),
            PictureFingerprints([sha256], Fingerprints.of([])),
        )
    try:
        data = Path(name).read_bytes()
        picture = images.normalise(data, params.ingest.image_size, params.ingest.max_pixels)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}; name a picture file or its SHA-256") from None
    except images.PictureError as error:
        raise DataError(f"{name}: {error}; name a picture file or its SHA-256") from None
    return PictureFingerprints([images.identity(data)], Fingerprints.of([(picture.phash, picture.thumbnail)]))
