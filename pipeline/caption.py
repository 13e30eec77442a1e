"""Caption your own photos with a registered model, or with a checkpoint's folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline import stage
from pipeline.data.pictures import PictureError, decode
from pipeline.errors import ConfigError, DataError
from pipeline.params import Params


def run(params: Params, args: argparse.Namespace) -> str:
    """Print each photo's captions; returns the last line to print."""
    images, problems = [], []
    for photo in args.photo:
        try:
            images.append((photo, decode(photo.read_bytes(), params.ingest.max_pixels)))
        except OSError as error:
            problems.append(f"{photo}: {error.strerror}")
        except PictureError as error:
            problems.append(f"{photo}: {error}")
    if not images:
        raise DataError(f"{'; '.join(problems)}; name a JPEG, PNG, WebP, GIF, BMP or TIFF picture")

    folder = _checkpoint(args.model or f"models:/{params.register_.model}")
    from pipeline.model.captioner import Captioner

    captioner = Captioner.from_folder(folder)
    for photo, image in images:
        if args.several == 1:
            captions = captioner.caption([image], beams=params.evaluate.beams)
        else:
            captions = captioner.several([image], args.several, seed=args.seed)[0]
        for caption in captions:
            print(f"{photo}: {caption}")
    for problem in problems:
        print(f"caption: {problem}; left out", file=sys.stderr)
    return f"{len(images)} of {len(args.photo)} photos captioned by {args.model or 'the newest version'} ({folder})"


def _checkpoint(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    if not model.startswith("models:/"):
        raise ConfigError(f"--model {model}: is no folder; name one, or models:/NAME@ALIAS, or models:/NAME/VERSION")
    from pipeline.registry import checkpoint_of

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
    stage.main("caption", run, _arguments)
