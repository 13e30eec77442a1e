"""Tell which registered versions were trained on a picture, or on one that is nearly the same.

A picture is a file, or the SHA-256 of one. What is nearly the same as a hash is known where that picture was
ingested (data/ingest) or a version was trained on it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.data import images
from pipeline.data.fingerprints import Printed, ingested, read_printed
from pipeline.data.split import Prints
from pipeline.runtime import entrypoint
from pipeline.tracking import registry

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def run(params: Params, args: argparse.Namespace) -> str:
    """Print what each version was trained on of the pictures asked for; returns the last line to print."""
    from pipeline.tracking import runs

    model = params.register_.model
    with runs.reachable():
        listed = {
            number: registry.training_pictures(model, number) for number in registry.versions(runs.client(), model)
        }
    known = {number: read_printed(path) for number, path in listed.items() if path}
    for name in args.picture:
        picture = _look_up(name, [*known.values(), ingested()], params)
        (sha256,) = picture.hashes
        exactly = [number for number, theirs in known.items() if theirs.has(sha256)]
        nearly = [
            number
            for number, theirs in known.items()
            if number not in exactly and theirs.near(picture, params.build.near_duplicate_bits)
        ]
        print(
            f"{name} ({sha256[:12]}...): trained on it: {_numbers(exactly)}; on one nearly the same: {_numbers(nearly)}"
        )
    silent = [f"{number}" for number in listed if number not in known]
    return (
        f"{len(listed)} versions of {model} were looked through"
        + (f" (versions {', '.join(silent)} do not tell)" if silent else "")
        + "; to use a picture no more, name it in ingest.exclude and run `dvc repro`"
    )


def _numbers(versions: list[int]) -> str:
    return f"versions {', '.join(map(str, versions))}" if versions else "none"


def _look_up(name: str, known: Sequence[Printed], params: Params) -> Printed:
    if _SHA256.fullmatch(name) and not Path(name).exists():
        sha256 = name.lower()
        return next((some.of([sha256]) for some in known if some.has(sha256)), Printed([sha256], Prints.of([])))
    try:
        data = Path(name).read_bytes()
        made = images.normalise(data, params.ingest.image_size, params.ingest.max_pixels)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}; name a picture file, or the SHA-256 of one") from None
    except images.PictureError as error:
        raise DataError(f"{name}: {error}; name a picture file, or the SHA-256 of one") from None
    return Printed([images.identity(data)], Prints.of([(made.phash, made.thumbnail)]))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", nargs="+", metavar="PICTURE", help="a picture file, or the SHA-256 of one")


if __name__ == "__main__":
    entrypoint.main("trained_on", run, _arguments)
