"""Caption photos with a registered model or a checkpoint folder."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.images import PictureError, decode
from pipeline.serving.choice import choose

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.serving.bulk_sidecars import Sidecars
    from pipeline.serving.bulk_work import NamedModel


def caption_photos(
    params: Params,
    photos: Sequence[Path],
    *,
    model: str | None = None,
    several: int = 1,
    seed: int = 0,
    diverse: bool = False,
) -> str:
    """Print the captions of each photo and return the last line to print.

    Args:
        params: all of params.yaml.
        photos: picture files.
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a checkpoint folder; None for the champion, or the
            newest version if there is no champion.
        several: the maximum number of different captions per photo.
        seed: random seed of the sampling if `several` is more than 1.
        diverse: whether several captions share few words.

    Raises:
        DataError: no photo can be read.
        ConfigError: there is no such model.
        TemporaryError: MLflow can't be reached.
    """
    problems: list[str] = []
    readable = _open_photos(photos, params.ingest.max_pixels, problems)
    first = next(readable, None)  # before the model is loaded
    if first is None:
        raise DataError(f"{'; '.join(problems)}; name a JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture")

    model, why = (model, "") if model else _default_model(params.register_.model)
    folder = _checkpoint(model, params.runtime.model_cache_gb)
    from pipeline.tracking.captioners import load_captioner

    captioner = load_captioner(model, params, folder)
    captioned = 0
    for name, image in itertools.chain([first], readable):
        if several == 1:
            captions = captioner.caption([image], beams=params.evaluate.beams)
        else:
            captions = captioner.several([image], several, seed, diverse)[0]
        for caption in captions:
            print(f"{name}: {caption}")
        captioned += 1
    for problem in problems:
        print(f"caption: {problem}; skipped", file=sys.stderr)
    return f"{captioned} of {len(photos)} photos captioned by {model}{why} ({folder})"


def caption_folder(
    params: Params,
    sources: Sequence[Path | str],
    out: Path,
    *,
    model: str | None = None,
    several: int = 1,
    seed: int = 0,
    diverse: bool = False,
    sidecars: Sidecars | None = None,
    engine: str | None = None,
) -> str:
    """Caption all pictures of one source into `out`, and return the last line to print; see `bulk.caption_all`.

    Args:
        params: all of params.yaml.
        sources: one folder, zip or `s3://BUCKET/PREFIX`.
        out: a `.jsonl` or `.parquet` file, or a folder for sidecars.
        model: see `caption_photos`.
        several: the maximum number of different captions per picture.
        seed: random seed of the sampling if `several` is more than 1.
        diverse: whether several captions share few words.
        sidecars: what is written per picture if `out` is a folder; None for text files.
        engine: `local` or `ray`; None for `runtime.engine`.

    Raises:
        ConfigError, DataError, TemporaryError: see `caption_photos` and `bulk.caption_all`.
    """
    if len(sources) != 1:
        raise ConfigError(f"--out {out}: found {len(sources)} arguments; name one folder or .zip")
    if engine:
        params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"engine": engine})})
    from pipeline.serving import bulk

    return bulk.caption_all(
        params,
        sources[0],
        out,
        lambda: find(params, "caption", model),
        several,
        seed,
        diverse,
        sidecars=sidecars,
    )


def find(params: Params, command: str, model: str | None) -> NamedModel:
    """Find a model and print which; see `caption_photos`."""
    from pipeline.serving.bulk_work import NamedModel
    from pipeline.tracking.captioners import find_captioner

    uri, why = (model, "") if model else _default_model(params.register_.model)
    found = find_captioner(uri, params, _checkpoint(uri, params.runtime.model_cache_gb))
    print(f"{command}: {uri}{why}", flush=True)
    return NamedModel(uri, found.load)


def _open_photos(photos: Iterable[Path], max_pixels: int, problems: list[str]) -> Iterator[tuple[str, Image]]:
    """Yield the printable name and the picture of each readable photo; append the others' problems to `problems`."""
    for photo in photos:
        name = os.fsencode(photo).decode(errors="replace")
        if photo.is_dir() or photo.suffix.lower() == ".zip" or name.startswith("s3:"):
            problems.append(f"{name}: is not a picture; add `--out captions.jsonl` to caption a folder, zip or bucket")
            continue
        try:
            image = decode(photo.read_bytes(), max_pixels)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except PictureError as error:
            problems.append(f"{name}: {error}")
        else:
            yield name, image


def _default_model(name: str) -> tuple[str, str]:
    """Return the URI of the champion, else of the newest version, and why that one was chosen."""
    from pipeline.tracking import registry, runs

    with runs.reachable():
        choice = choose(runs.client(), name, registry.CHAMPION)
    if choice is None:
        raise ConfigError(f"models:/{name}: has no version in MLflow; run `dvc repro`, or `make register` if you did")
    return choice.uri, f", {choice.why}"


def _checkpoint(model: str, cache_gb: float) -> Path:
    if Path(model).is_dir():
        return Path(model)
    if not model.startswith("models:/"):
        raise ConfigError(f"--model {model}: is not a folder; name one, or models:/NAME@ALIAS, or models:/NAME/VERSION")
    from pipeline.tracking.downloads import checkpoint_of

    return checkpoint_of(model, cache_gb)
