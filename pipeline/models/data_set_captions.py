"""Captions of the data set's pictures, for `evaluate` and `promote`: by this process, or by the workers of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config.params import Params
from pipeline.engine.base import Engine, Read
from pipeline.engine.choice import open_engine
from pipeline.models.model_files import ModelFiles
from pipeline.runtime.progress import progress_bar


@dataclass(frozen=True)
class _Captioning:
    """Makes the work of Ray's workers; it can be pickled."""

    files: ModelFiles
    beams: int
    max_tokens: int

    def __call__(self) -> Callable[[Sequence[bytes]], list[str]]:
        captioner = self.files.load()
        return lambda batch: captioner.caption_encoded(batch, self.beams, self.max_tokens)


class DataSetCaptioning:
    """Captions pictures in batches of `runtime.caption_batch_size`, which are the same with every engine."""

    def __init__(self, params: Params, engine: Engine | None) -> None:
        """Use an engine's workers; None for this process."""
        self._params = params
        self._engine = engine

    def captions(
        self, files: ModelFiles, pictures: Sequence[bytes], name: str, beams: int | None = None
    ) -> tuple[list[str], float]:
        """Return a caption of each picture, and the seconds that it took.

        With Ray, these include the start of its workers, each of which loads the model.

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
        captions: list[str] = []
        if self._engine is None:
            caption = work()
            start = time.perf_counter()
            for first in progress_bar(range(0, len(pictures), size), desc=name, unit=" batches"):
                captions += caption(pictures[first : first + size])
        else:
            start = time.perf_counter()
            found = self._engine.map(_read, work, pictures, batch=size, whole=True, needs_gpu=True)
            for _, text in progress_bar(found, total=len(pictures), desc=name, unit=" pictures"):
                assert text is not None, "every picture has data"
                captions.append(text)
        return captions, time.perf_counter() - start


@contextmanager
def data_set_captioning(params: Params) -> Iterator[DataSetCaptioning]:
    """Yield what captions pictures as `runtime.engine` says; for the errors see `open_engine`."""
    if params.runtime.engine == "local":  # this engine works on single pictures, and models on batches
        yield DataSetCaptioning(params, None)
        return
    with open_engine(params.runtime) as engine:
        yield DataSetCaptioning(params, engine)


@contextmanager
def _read(picture: bytes) -> Iterator[Read[None]]:
    yield Read(None, picture)
