"""Captions of the data set's pictures, for `evaluate` and `promote`: by this process, or by the workers of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.params import Params
from pipeline.engine.base import Engine, Read
from pipeline.engine.choice import open_engine
from pipeline.runtime.progress import progress_bar

if TYPE_CHECKING:
    from pipeline.models.model_files import ModelFiles


@dataclass(frozen=True)
class _Captioning:
    """Makes the work of Ray's workers; it can be pickled."""

    files: ModelFiles
    beams: int
    max_tokens: int

    def __call__(self) -> Callable[[Sequence[bytes]], list[str]]:
        captioner = self.files.load()
        return lambda batch: captioner.caption_encoded(batch, self.beams, self.max_tokens)


class DataSetCaptions:
    """Captions pictures in batches of `runtime.caption_batch_size`. The captions do not depend on the engine."""

    def __init__(self, params: Params, engine: Engine) -> None:
        self._params = params
        self._engine = engine

    def make(
        self, files: ModelFiles, pictures: Sequence[bytes], name: str, beams: int | None = None
    ) -> tuple[list[str], float]:
        """Return a caption of each picture, and the seconds that it took. With Ray they include loading the model.

        Args:
            files: the model.
            pictures: encoded pictures of the data set.
            name: label of the progress bar.
            beams: width of beam search; None for that of the params.

        Raises:
            ConfigError: the model can't be used.
            TemporaryError: workers of Ray died again and again, or none starts.
        """
        work = _Captioning(files, beams or self._params.evaluate.beams, self._params.finetune.max_tokens)
        size = self._params.runtime.caption_batch_size
        if self._params.runtime.engine == "local":  # its threads take single pictures
            caption = work()
            start = time.perf_counter()
            batches = progress_bar(range(0, len(pictures), size), desc=name, unit=" batches")
            captions = [text for first in batches for text in caption(pictures[first : first + size])]
            return captions, time.perf_counter() - start
        start = time.perf_counter()
        found = self._engine.map(_read, work, pictures, batch=size, whole=True, needs_gpu=True)
        bar = progress_bar(found, total=len(pictures), desc=name, unit=" pictures")
        return [text for _, text in bar if text is not None], time.perf_counter() - start


@contextmanager
def data_set_captions(params: Params) -> Iterator[DataSetCaptions]:
    """Yield what captions pictures with the engine of the params; for the errors see `open_engine`."""
    with open_engine(params.runtime) as engine:
        yield DataSetCaptions(params, engine)


@contextmanager
def _read(picture: bytes) -> Iterator[Read[None]]:
    yield Read(None, picture)
