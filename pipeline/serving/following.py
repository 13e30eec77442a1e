"""The model that the service answers with: loaded in a thread, and replaced when the alias moves.

Without a registered version the checkpoint of this workspace, `models/finetune`, is served. A new model is loaded
beside the old one and swapped in when it is ready, so that no request waits for it or fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.models.captioner import Captioner
from pipeline.serving.choice import Choice, choose, choose_challenger
from pipeline.serving.watch import made_by

_RETRY_SECONDS = 60.0  # until a version that could not be loaded is tried again


@dataclass(frozen=True)
class ModelToServe:
    """The model to serve.

    Attributes:
        name: name of the registered model.
        version: number of the version; None for the checkpoint of this workspace.
        alias: the alias that led to it, if one did.
        why: the reason in words.
        source: `models:/NAME/VERSION`, or the checkpoint's folder.
        aliases: all aliases of the version.
        tags: the version's tags: data, git commit, scores, ...
        made_by: identifies what captions, for `image-captioning watch`.
        state: changes when the files of an unregistered checkpoint change.
    """

    name: str
    version: int | None
    alias: str | None
    why: str
    source: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""
    state: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Equal if the weights are."""
        return self.source, self.state


@dataclass(eq=False)
class Served:
    """A loaded model. `found` is refreshed when aliases or tags change."""

    captioner: Captioner
    found: ModelToServe


class ModelSource:
    """Looks the model up in MLflow, else in this workspace, and loads it."""

    def __init__(self, name: str, alias: str, params: Params) -> None:
        self._name, self._alias, self._params = name, alias, params
        self._store: Any = None  # MLflow's client

    def look_up(self) -> ModelToServe:
        """Return the model to serve now.

        Raises:
            ConfigError: neither MLflow nor the workspace has a model.
            TemporaryError: MLflow can't be reached.
        """
        from pipeline.tracking import registry, runs

        with runs.reachable():
            self._store = self._store or runs.client()
            choice = self._choose()
            if choice is not None:
                aliases, tags = registry.aliases_and_tags(self._store, choice.name, choice.version)
                key = made_by(tags.get(registry.MODEL_SHA256), self._params.evaluate)
                return ModelToServe(
                    choice.name, choice.version, choice.alias, choice.why, choice.uri, aliases, tags, key
                )
        return self._unregistered()

    def _choose(self) -> Choice | None:
        return choose(self._store, self._name, self._alias)

    def _unregistered(self) -> ModelToServe:
        weights = sorted(paths.MODEL.glob("*.safetensors"))
        if not weights:
            raise ConfigError(
                f"models:/{self._name} has no version in MLflow, and {paths.MODEL} has no checkpoint; run `dvc repro`"
            )
        state = " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights)
        why = "the checkpoint of this workspace: no version is registered"
        return ModelToServe(self._name, None, None, why, str(paths.MODEL), state=state)

    def load(self, found: ModelToServe) -> Captioner:
        """Load the model that was looked up.

        Raises:
            ConfigError: it is gone, or has no usable checkpoint or index.
            TemporaryError: MLflow can't be reached.
        """
        from pipeline.tracking.captioners import load_captioner

        return load_captioner(found.source, self._params)


class ChallengerSource(ModelSource):
    """Looks up the version to compare with the served one."""

    def _choose(self) -> Choice | None:
        return choose_challenger(self._store, self._name, self._alias)

    def _unregistered(self) -> ModelToServe:
        raise ConfigError(
            f"models:/{self._name} has no challenger: no version is newer than the champion; register a new version,"
            " or give one the alias `challenger`"
        )


class Follower:
    """Keeps `current` up to date from a thread."""

    def __init__(
        self,
        source: ModelSource,
        seconds: float,
        *,
        say: Callable[[str], None],
        loaded: Callable[[ModelToServe], None],
        keeps: bool = True,
    ) -> None:
        """Create a follower; `start` starts it.

        Args:
            source: looks up and loads the model.
            seconds: between two look-ups.
            say: prints a line.
            loaded: is called after a model was swapped in.
            keeps: whether to keep a model that the source no longer names.
        """
        self._source, self._seconds = source, seconds
        self._say, self._loaded, self._keeps = say, loaded, keeps
        self._ended = threading.Event()
        self._failed: tuple[tuple[str, str], float] | None = None  # what could not be loaded, and when
        self._started = threading.Lock()  # held from the start on
        self.current: Served | None = None
        self.problem: str | None = "the model is being loaded"

    def start(self) -> None:
        """Look up and load the model in a thread, then again and again. A second call does nothing."""
        if not self._started.acquire(blocking=False):
            return
        threading.Thread(target=self._follow, name="follow-alias", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its current look-up."""
        self._ended.set()

    def _follow(self) -> None:
        while not self._ended.is_set():
            self.refresh()
            self._ended.wait(self._seconds)

    def refresh(self) -> None:
        """Look the model up, and swap it in if it is not the current one. A failure leaves the current one."""
        found = None
        try:
            found = self._source.look_up()
            if self.current is not None and found.key == self.current.found.key:
                self.current.found = found
            elif self._failed is None or self._failed[0] != found.key or time.monotonic() > self._failed[1]:
                self._swap_in(found)
            else:
                return
        except Exception as error:  # a look-up or a checkpoint may fail in many ways, and the thread must go on
            if found is not None:
                self._failed = (found.key, time.monotonic() + _RETRY_SECONDS)
            if isinstance(error, ConfigError) and found is None and not self._keeps:
                self.current = None
            self._note(" ".join(f"{error}".split()) or type(error).__name__)
        else:
            self.problem = None

    def _swap_in(self, found: ModelToServe) -> None:
        captioner = self._source.load(found)
        size = captioner.image_size
        # The first pass allocates memory and is slow.
        captioner.scored([captioner.prepare(Image.new("RGB", (size, size)))], [0], count=1, beams=1, sampling=False)
        self.current = Served(captioner, found)
        self._loaded(found)
        self._say(f"serving {found.source}, {found.why}")

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            kept = f"; still serving {self.current.found.source}" if self.current else ""
            self._say(f"{problem}{kept}")
        self.problem = problem
