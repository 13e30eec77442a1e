"""Caption your own photos with a registered model, or with a checkpoint's folder."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.images import PictureError, decode
from pipeline.runtime import entrypoint

if TYPE_CHECKING:
    from PIL.Image import Image


def run(params: Params, args: argparse.Namespace) -> str:
    """Print each photo's captions; returns the last line to print."""
    problems: list[str] = []
    photos = _opened(args.photo, params.ingest.max_pixels, problems)
    first = next(photos, None)  # before the model is loaded
    if first is None:
        raise DataError(f"{'; '.join(problems)}; name a JPEG, PNG, WebP, GIF, BMP or TIFF picture")

    folder = _checkpoint(args.model or f"models:/{params.register_.model}")
    from pipeline.models.captioner import Captioner

    captioner = Captioner.from_folder(folder)
    captioned = 0
    for name, image in itertools.chain([first], photos):
        if args.several == 1:
            captions = captioner.caption([image], beams=params.evaluate.beams)
        else:
            captions = captioner.several([image], args.several, seed=args.seed)[0]
        for caption in captions:
            print(f"{name}: {caption}")
        captioned += 1
    for problem in problems:
        print(f"caption: {problem}; left out", file=sys.stderr)
    return f"{captioned} of {len(args.photo)} photos captioned by {args.model or 'the newest version'} ({folder})"


def _opened(photos: Iterable[Path], max_pixels: int, problems: list[str]) -> Iterator[tuple[str, Image]]:
    """Each photo with its name to print, one at a time; what is wrong with the others goes to `problems`."""
    for photo in photos:
        name = os.fsencode(photo).decode(errors="replace")
        try:
            image = decode(photo.read_bytes(), max_pixels)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except PictureError as error:
            problems.append(f"{name}: {error}")
        else:
            yield name, image


def _checkpoint(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    if not model.startswith("models:/"):
        raise ConfigError(f"--model {model}: is no folder; name one, or models:/NAME@ALIAS, or models:/NAME/VERSION")
    from pipeline.tracking.registry import checkpoint_of

    return checkpoint_of(model)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, nargs="+", metavar="PHOTO", help="a picture file")
    parser.add_argument(
        "--model",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint's folder (default: the newest version)",
    )
    parser.add_argument("--several", type=_count, default=1, metavar="N", help="up to N different captions a photo")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, with --several (default: %(default)s)")


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


if __name__ == "__main__":
    entrypoint.main("caption", run, _arguments)
