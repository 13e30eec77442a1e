"""The training pictures as an index: the features of each picture, and what people wrote about it.

It holds no picture. An index is a folder of plain files that travels with the registered model:

* `features.safetensors`: `features`, `(pictures, width)` float16, the mean of a picture's image tokens at length 1;
* `captions.jsonl`: a line per picture, `{"sha256": ..., "captions": [...]}`;
* `neighbours.json`: the hash of the checkpoint that computed the features, and how its captions were made and chosen;
* `checksums.json`: the hash of each file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.sections.evaluate import DecodingSettings, GenerationSettings
from pipeline.evaluation.consensus import Utility
from pipeline.evaluation.metrics.corpus import Floats
from pipeline.runtime.atomic_files import read_json, read_json_lines, write_json, write_json_lines
from pipeline.runtime.checksummed import checksummed_folder, is_intact

_FEATURES, _CAPTIONS, _FACTS = "features.safetensors", "captions.jsonl", paths.NEIGHBOURS_SETTINGS.name
_CHUNK = 65_536  # pictures of the index that are compared at a time, to bound memory
_ROWS = 64  # pictures whose nearest are looked up at a time, likewise
_DIGITS = 5  # of a similarity: less than the noise of another batch size, so that equal pictures stay in order


@dataclass(frozen=True)
class Neighbours:
    """An index of pictures.

    Attributes:
        features: `(pictures, width)` float16, of length 1.
        captions: of each picture.
        sha256s: of each picture's raw bytes.
        facts: `model_sha256`, the hash of the checkpoint; `generation` and `decoding`, the settings of its captions.
    """

    features: npt.NDArray[np.float16]
    captions: Sequence[Sequence[str]]
    sha256s: Sequence[str]
    facts: Mapping[str, Any]

    @cached_property
    def utility(self) -> Utility:
        """CIDEr-D with the document frequencies of these captions."""
        return Utility(self.captions)

    def nearest(self, features: npt.NDArray[np.float32], count: int) -> list[list[int]]:
        """Return the indices of the pictures with the highest cosine similarity, the nearest first.

        The search is exact. Equal pictures keep the order of the index.

        Args:
            features: `(pictures, width)` float32, of length 1.
            count: pictures to return for each; fewer if the index has fewer.
        """
        return [indices.tolist() for _, indices in self._nearest(features, count)]

    def _nearest(
        self, features: npt.NDArray[np.float32], count: int
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """Return the similarities and the indices; see `nearest`."""
        best = [(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)) for _ in features]
        for first in range(0, len(self.features), _CHUNK):
            known = self.features[first : first + _CHUNK].astype(np.float32)
            parts = ((features[row : row + _ROWS] @ known.T).round(_DIGITS) for row in range(0, len(features), _ROWS))
            for row, similar in enumerate(chain.from_iterable(parts)):
                values = np.concatenate([best[row][0], similar])
                indices = np.concatenate([best[row][1], np.arange(first, first + len(known))])
                if len(values) > count:
                    kept = np.flatnonzero(values >= np.partition(values, -count)[-count])
                    values, indices = values[kept], indices[kept]
                order = np.argsort(-values, kind="stable")[:count]
                best[row] = values[order], indices[order]
        return best

    def captions_near(self, features: npt.NDArray[np.float32], count: int) -> list[tuple[list[str], Floats]]:
        """Return for each picture the captions of its `count` nearest pictures, and how much each counts.

        The weights sum to 1. The captions of a picture share its weight, which falls to 1/e with each standard
        deviation that it is less similar than the nearest; so they do not depend on the scale of the features.
        """
        found = []
        for similar, indices in self._nearest(features, count):
            several = [self.captions[i] for i in indices]
            lengths = np.array([*map(len, several)], dtype=np.int64)
            weights = np.repeat(_falling(similar.astype(np.float64)) / lengths, lengths)
            found.append(([*chain.from_iterable(several)], weights / weights.sum()))
        return found

    def without(self, sha256s: Iterable[str]) -> Neighbours:
        """Return the index without some pictures."""
        left_out = set(sha256s)
        kept = [i for i, sha256 in enumerate(self.sha256s) if sha256 not in left_out]
        if len(kept) == len(self.sha256s):
            return self
        captions, names = [self.captions[i] for i in kept], [self.sha256s[i] for i in kept]
        return Neighbours(self.features[kept], captions, names, self.facts)

    def write(self, folder: Path) -> None:
        """Write the index; `folder` must not exist. Equal indexes give equal bytes."""
        with checksummed_folder(folder) as place:
            # `save_file` would make it readable by its owner only.
            (place / _FEATURES).write_bytes(save({"features": np.ascontiguousarray(self.features)}))
            lines = zip(self.sha256s, self.captions, strict=True)
            write_json_lines(place / _CAPTIONS, ({"sha256": sha256, "captions": list(c)} for sha256, c in lines))
            write_json(place / _FACTS, dict(self.facts))


def _falling(similar: Floats) -> Floats:
    """Return the weights of similarities, the highest first, `(pictures,)`: 1 for the highest."""
    spread = similar.std() if len(similar) else 0.0
    weights: Floats = np.exp((similar - similar[:1]) / spread) if spread > 0 else np.ones_like(similar)
    return weights


def settings_of(folder: Path) -> tuple[GenerationSettings, DecodingSettings]:
    """Return how captions were generated and chosen when the index was made, or a folder with its settings only."""
    facts = read_json(folder / _FACTS)
    # Models that were registered before `likelihood` existed choose as they did then.
    return GenerationSettings(**facts["generation"]), DecodingSettings(**{"likelihood": 0.0} | facts["decoding"])


def read_neighbours(folder: Path, model_sha256: str) -> Neighbours:
    """Read an index.

    Args:
        folder: the index.
        model_sha256: `weights_hash` of the checkpoint that it must belong to.

    Raises:
        ConfigError: it is missing or damaged, or belongs to another checkpoint.
    """
    mend = "run `dvc repro`, or set evaluate.decoding.method to beam"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: this model has no index of its training captions; {mend}")
    if not is_intact(folder):
        raise ConfigError(f"{folder}: is damaged: its files do not match its checksums.json; {mend}")
    facts = read_json(folder / _FACTS)
    if facts["model_sha256"] != model_sha256:
        raise ConfigError(f"{folder}: belongs to another checkpoint; {mend}")
    lines = list(read_json_lines(folder / _CAPTIONS))
    features = load_file(folder / _FEATURES)["features"]
    if len(features) != len(lines):
        raise ConfigError(f"{folder}: found {len(features)} pictures and {len(lines)} lines of captions; {mend}")
    return Neighbours(features, [line["captions"] for line in lines], [line["sha256"] for line in lines], facts)
