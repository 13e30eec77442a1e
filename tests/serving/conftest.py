"""A service in this process, with the shipped checkpoint and a registry whose alias tests can move."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.config.sections.serving import Serving
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.serving import bulk
from pipeline.serving.bulk_sidecars import Sidecars
from pipeline.serving.bulk_work import NamedModel
from pipeline.serving.following import Follower, ModelToServe
from pipeline.serving.metrics import Metrics
from pipeline.serving.service import Service, create_app
from pipeline.synthetic.scenes import draw, random_scene
from tests.conftest import ROOT, jpeg, set_params

URI = "models:/toy/1"

SETTINGS = {
    "max_batch": 16,
    "max_wait_ms": 5.0,
    "max_queue": 64,
    "timeout_seconds": 60.0,
    "follow_seconds": 0.05,
    "watch": False,
}


class FakeRegistry:
    """Serve `captioner` under a version number; with None, no model is found."""

    def __init__(self, captioner: Captioner, version: int | None = 1) -> None:
        self.captioner, self.version = captioner, version
        self.failure: Exception | None = None

    def look_up(self) -> ModelToServe:
        if self.version is None:
            raise ConfigError("models:/toy has no version in MLflow; run `dvc repro`")
        source = f"models:/toy/{self.version}"
        return ModelToServe(
            "toy", self.version, "champion", "the champion", source, ("champion",), {"git_commit": "abc"}
        )

    def load(self, found: ModelToServe) -> Captioner:
        if self.failure:
            raise self.failure
        return self.captioner


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    return Captioner.from_folder(ROOT / "models" / "git-demo")


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Six different drawn scenes, and two plain pictures of which the model is unsure, as JPEG."""
    rng, grain = random.Random(3), np.random.default_rng(3)
    found = []
    for _ in range(6):
        buffer = io.BytesIO()
        draw(random_scene(rng), grain).save(buffer, "JPEG", quality=95)
        found.append(buffer.getvalue())
    return [*found, jpeg("red", (400, 300)), jpeg("navy", (300, 400))]


@pytest.fixture
def registry(captioner: Captioner) -> FakeRegistry:
    return FakeRegistry(captioner)


class FakeChallenger(FakeRegistry):
    """Serve a challenger; None: no challenger."""

    def look_up(self) -> ModelToServe:
        if self.version is None:
            raise ConfigError("models:/toy has no challenger")
        return super().look_up()


@pytest.fixture
def challenger(captioner: Captioner) -> FakeChallenger:
    return FakeChallenger(captioner, 2)


Start = Callable[..., TestClient]


@pytest.fixture
def start(registry: FakeRegistry, challenger: FakeChallenger) -> Iterator[Start]:
    """Starts a service: `start(token=..., max_queue=...)`; waits until it is ready if the registry has a version."""
    with ExitStack() as stack:

        def begin(token: str = "", wait: bool = True, **settings: float) -> TestClient:
            follower = Follower(registry, SETTINGS["follow_seconds"], say=print, loaded=lambda found: None)  # type: ignore[arg-type]
            if wait:
                follower.refresh()
            second = Follower(
                challenger,  # type: ignore[arg-type]
                SETTINGS["follow_seconds"],
                say=print,
                loaded=lambda found: None,
                keeps=False,
            )
            service = Service(
                follower,
                Serving(**{**SETTINGS, **settings}),  # type: ignore[arg-type]
                beams=2,
                metrics=Metrics(),
                budget=MemoryBudget(10**9),
                challenger=second,
            )
            client = TestClient(create_app(service, token), base_url="http://127.0.0.1:8600")
            return stack.enter_context(client)

        yield begin


Caption = Callable[..., tuple[str, int]]


@pytest.fixture
def photos(workspace: Path, pictures: list[bytes]) -> Path:
    """A folder with four pictures, one of them in a zip, and files that are none."""
    folder = workspace / "photos"
    (folder / "img").mkdir(parents=True)
    (folder / "img" / "1.jpg").write_bytes(pictures[0])
    (folder / "img" / "2.JPG").write_bytes(pictures[6])
    (folder / "3.png").write_bytes(pictures[2])
    (folder / "cut.jpg").write_bytes(pictures[3][: len(pictures[3]) // 2])
    (folder / "notes.md").write_text("not a picture")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("x/4.jpg", pictures[4])
        archive.writestr("__MACOSX/x/._4.jpg", b"resource fork")
    return folder


@pytest.fixture
def caption(captioner: Captioner) -> Caption:
    """Captions a folder: `caption(photos, out)` returns the last line and how often the model was loaded."""

    def work(
        source: Path | str, out: Path, *, uri: str = URI, several: int = 1, sidecars: Sidecars | None = None
    ) -> tuple[str, int]:
        loads: list[str] = []

        def load() -> Captioner:
            loads.append(uri)
            return captioner

        set_params(Path(), {"runtime.caption_batch_size": 2, "evaluate.generation.beams": 1})
        last = bulk.caption_all(params.load(), source, out, lambda: NamedModel(uri, load), several, sidecars=sidecars)
        return last, len(loads)

    return work
