"""Tell which registered versions were trained on a picture, or on one that is nearly the same.

A picture is a file, or the SHA-256 of one. What is nearly the same is looked for among the sources as they were
last ingested (data/ingest).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline import paths, stage
from pipeline.data import pictures
from pipeline.data.records import Ingested, read_ingested
from pipeline.data.split import Prints, look_alikes
from pipeline.errors import DataError
from pipeline.params import Params

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class _Asked:
    """A picture that is asked for: what it was called, its hash, and the hashes of what is nearly the same."""

    name: str
    sha256: str
    near: set[str]


def run(params: Params, args: argparse.Namespace) -> str:
    """Print what each version was trained on of the pictures asked for; returns the last line to print."""
    from pipeline import tracking

    ingested = [
        record for records in sorted(paths.INGEST.glob("*/records.jsonl")) for record in read_ingested(records.parent)
    ]
    asked = [_look_up(name, ingested, params) for name in args.picture]
    model = params.register_.model
    with tracking.reachable():
        known = {
            number: tracking.training_pictures(model, number) for number in tracking.versions(tracking.client(), model)
        }
    silent = [f"{number}" for number, hashes in known.items() if hashes is None]
    for picture in asked:
        exactly = [number for number, hashes in known.items() if hashes and picture.sha256 in hashes]
        nearly = [n for n, hashes in known.items() if hashes and n not in exactly and picture.near & hashes]
        print(
            f"{picture.name} ({picture.sha256[:12]}...): trained on it: {_numbers(exactly)};"
            f" on one nearly the same: {_numbers(nearly)}"
        )
    return (
        f"{len(known)} versions of {model} were looked through"
        + (f" (versions {', '.join(silent)} do not tell)" if silent else "")
        + "; to use a picture no more, name it in ingest.exclude and run `dvc repro`"
    )


def _numbers(versions: list[int]) -> str:
    return f"versions {', '.join(map(str, versions))}" if versions else "none"


def _look_up(name: str, ingested: list[Ingested], params: Params) -> _Asked:
    of_all = Prints.of([(int(record.phash, 16), bytes.fromhex(record.thumbnail)) for record in ingested])
    if _SHA256.fullmatch(name) and not Path(name).exists():
        sha256 = name.lower()
        asked = of_all[[i for i, record in enumerate(ingested) if record.sha256 == sha256]]
    else:
        try:
            data = Path(name).read_bytes()
            made = pictures.normalise(data, params.ingest.image_size, params.ingest.max_pixels)
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}; name a picture file, or the SHA-256 of one") from None
        except pictures.PictureError as error:
            raise DataError(f"{name}: {error}; name a picture file, or the SHA-256 of one") from None
        sha256 = pictures.identity(data)
        asked = Prints.of([(made.phash, made.thumbnail)])
    near = look_alikes(of_all, asked, params.build.near_duplicate_bits)
    return _Asked(name, sha256, {ingested[i].sha256 for i in near})


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", nargs="+", metavar="PICTURE", help="a picture file, or the SHA-256 of one")


if __name__ == "__main__":
    stage.main("trained_on", run, _arguments)
