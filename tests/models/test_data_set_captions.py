"""The captions of `evaluate` and `promote` by this process, and by the workers of Ray."""

from __future__ import annotations

import random
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import params
from pipeline.config.params import Params
from pipeline.models.data_set_captions import data_set_captioning
from pipeline.models.model_files import ModelFiles
from pipeline.synthetic.scenes import draw, random_scene
from tests.conftest import ROOT, set_params
from tests.engine.recording import RecordingEngine, recording  # noqa: F401

NUMBER = 11


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Eleven drawn scenes."""
    rng, grain, found = random.Random(0), np.random.default_rng(0), []
    for _ in range(NUMBER):
        buffer = BytesIO()
        draw(random_scene(rng), grain).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


def settings(workspace: Path, engine: str) -> Params:
    set_params(workspace, {"runtime.engine": engine, "runtime.ray_workers": 2, "runtime.caption_batch_size": 4})
    return params.load()


def captions(chosen: Params, pictures: list[bytes], beams: int | None = None) -> list[str]:
    files = ModelFiles(ROOT / "models/git-demo", None, chosen.evaluate.generation, chosen.evaluate.decoding)
    with data_set_captioning(chosen) as captioning:
        found, seconds = captioning.captions(files, pictures, "captions", beams)
    assert seconds > 0
    return found


def test_an_engine_gets_batches_and_gives_the_captions_of_this_process(
    workspace: Path, pictures: list[bytes], recording: RecordingEngine  # noqa: F811
) -> None:  # fmt: skip
    local = captions(settings(workspace, "local"), pictures)
    assert len(local) == NUMBER
    assert len(set(local)) > 3
    assert recording.calls == []
    assert captions(settings(workspace, "ray"), pictures) == local
    assert captions(settings(workspace, "ray"), pictures, beams=1) == captions(
        settings(workspace, "local"), pictures, beams=1
    )
    assert recording.calls == [[4, 4, 3]] * 2


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_the_workers_of_ray_give_the_captions_of_this_process(workspace: Path, pictures: list[bytes]) -> None:
    local = captions(settings(workspace, "local"), pictures)
    assert captions(settings(workspace, "ray"), pictures) == local
