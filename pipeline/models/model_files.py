"""A model as files and settings, from which any process can load a captioner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.sections.evaluate import DecodingSettings, GenerationSettings
from pipeline.models.captioner import Captioner
from pipeline.models.neighbours import read_neighbours
from pipeline.models.weights import weights_hash


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
    excluded: frozenset[str] = frozenset()

    def load(self) -> Captioner:
        """Load the model and, if its captions are compared with others, the index of its training captions.

        Raises:
            ConfigError: the checkpoint can't be used, or the index is missing, damaged or of another model.
        """
        captioner = Captioner.from_folder(self.checkpoint)
        captioner.generate_by(self.generation)
        if self.neighbours is not None:
            index = read_neighbours(self.neighbours, weights_hash(self.checkpoint))
            captioner.choose_by(self.decoding, index.without(self.excluded))
        return captioner
