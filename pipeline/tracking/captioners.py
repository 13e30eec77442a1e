"""From the name of a model to a captioner that captions as `evaluate.generation` and `evaluate.decoding` say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import paths
from pipeline.config.params import Params
from pipeline.config.sections.evaluate import DecodingSettings, GenerationSettings
from pipeline.data.exclusion import excluded_sha256s
from pipeline.tracking import downloads

if TYPE_CHECKING:
    from pipeline.models.captioner import Captioner

_MODEL = "models:/"


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a model are on this machine. It can be pickled, and loaded in any process without MLflow.

    Attributes:
        checkpoint: the model's folder.
        neighbours: the index of the training captions; None if captions are not compared.
        generation, decoding: how to caption.
        excluded: hashes of pictures that are left out of the index.
    """

    checkpoint: Path
    neighbours: Path | None
    generation: GenerationSettings
    decoding: DecodingSettings
    excluded: frozenset[str]

    def load(self) -> Captioner:
        """Load the model and, if its captions are compared with others, the index of its training captions.

        Raises:
            ConfigError: the checkpoint can't be used, or the index is missing, damaged or of another model.
        """
        from pipeline.models.captioner import Captioner

        captioner = Captioner.from_folder(self.checkpoint)
        captioner.generate_by(self.generation)
        if self.neighbours is not None:
            from pipeline.models.neighbours import read_neighbours
            from pipeline.models.weights import weights_hash

            index = read_neighbours(self.neighbours, weights_hash(self.checkpoint))
            captioner.choose_by(self.decoding, index.without(set(self.excluded)))
        return captioner


def find_captioner(model: str, params: Params, checkpoint: Path | None = None) -> ModelFiles:
    """Find a model's files, downloaded if necessary; for the arguments and errors see `load_captioner`."""
    registered, cache_gb = model.startswith(_MODEL), params.runtime.model_cache_gb
    folder = checkpoint or (downloads.checkpoint_of(model, cache_gb) if registered else Path(model))
    generation, decoding = params.evaluate.generation, params.evaluate.decoding
    if not decoding.compares:
        return ModelFiles(folder.absolute(), None, generation, decoding, frozenset())
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
