"""From the name of a model to a captioner that captions as `evaluate.generation` and `evaluate.decoding` say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.data.exclusion import excluded_sha256s
from pipeline.tracking import downloads

if TYPE_CHECKING:
    from pipeline.models.captioner import Captioner
    from pipeline.models.model_files import ModelFiles

_MODEL = "models:/"


def find_captioner(model: str, params: Params, checkpoint: Path | None = None) -> ModelFiles:
    """Find a model's files, downloaded if necessary; for the arguments and errors see `load_captioner`."""
    from pipeline.models.model_files import ModelFiles  # torch is slow to import

    registered, cache_gb = model.startswith(_MODEL), params.runtime.model_cache_gb
    folder = checkpoint or (downloads.checkpoint_of(model, cache_gb) if registered else Path(model))
    generation, decoding = params.evaluate.generation, params.evaluate.decoding
    if not decoding.compares:
        return ModelFiles(folder.absolute(), None, generation, decoding)
    place = downloads.neighbours_of(model, cache_gb) if registered else folder.with_name(paths.NEIGHBOURS.name)
    excluded = frozenset(excluded_sha256s(params.ingest.exclude))
    return ModelFiles(folder.absolute(), place.absolute(), generation, decoding, excluded)


def load_captioner(model: str, params: Params, checkpoint: Path | None = None) -> Captioner:
    """Load a model and, if its captions are compared with others, the index of its training captions.

    Pictures that `ingest.exclude` names by their hash, or whose file is in a folder that it names, are left out of the
    index, also if the model was trained on them.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a checkpoint's folder.
        params: all of params.yaml.
        checkpoint: the model's folder, if it is known.

    Raises:
        ConfigError: there is no such model, or its index is missing, damaged or of another model.
        TemporaryError: MLflow can't be reached.
    """
    return find_captioner(model, params, checkpoint).load()
