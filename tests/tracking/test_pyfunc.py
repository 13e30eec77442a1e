"""The registered model behind MLflow's scoring server."""

from __future__ import annotations

import base64
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from pipeline.config.sections.evaluate import DecodingSettings
from pipeline.data.images import OpenedPicture, decode
from pipeline.models.captioner import PLAIN, Captioner
from pipeline.models.neighbours import Neighbours
from pipeline.models.weights import weights_hash
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.tracking import pyfunc
from pipeline.tracking.pyfunc import picture
from tests.conftest import ROOT, jpeg
from tests.models.git.test_checkpoint import small

PICTURE = base64.b64encode(jpeg()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """MLflow's scoring server with a tiny model, logged with the signature of `registry.log_model`."""
    folder = tmp_path_factory.mktemp("served")
    small().save(folder / "checkpoint")
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(ROOT / "pipeline" / "tracking" / "pyfunc.py"),
        artifacts={"checkpoint": str(folder / "checkpoint")},
        signature=ModelSignature(
            inputs=Schema([ColSpec(AnyType(), "image")]),
            outputs=Schema([ColSpec("string", "caption"), ColSpec("string", "error")]),
            params=ParamSchema([ParamSpec("beams", "integer", 3)]),
        ),
        pip_requirements=[],
    )
    model = mlflow.pyfunc.load_model(str(folder / "model"))
    with TestClient(scoring_server.init(model), raise_server_exceptions=False) as client:
        yield client


def ask(server: TestClient, picture: Any, **params: Any) -> Any:
    content = {"dataframe_records": [{"image": picture}], "params": params}
    return server.post("/invocations", content=json.dumps(content), headers={"Content-Type": "application/json"})


def test_base64_with_line_breaks_is_read(server: TestClient) -> None:
    """GNU `base64` breaks its output into lines of 76 characters, and Windows' tools end them in CRLF."""
    (plain,) = ask(server, PICTURE).json()["predictions"]
    assert plain["error"] == ""
    broken = base64.encodebytes(jpeg()).decode()
    assert broken.count("\n") > 5
    for sent in (broken, broken.replace("\n", "\r\n"), f"data:image/jpeg;base64,{broken}"):
        assert ask(server, sent).json()["predictions"] == [plain]


def test_what_is_not_base64_is_still_refused(server: TestClient) -> None:
    for sent in ("/etc/passwd", "abc", "ab=c", "data:image/jpeg,abc"):
        (row,) = ask(server, sent).json()["predictions"]
        assert row["caption"] == ""
        assert "base64" in row["error"]


@pytest.mark.parametrize("beams", [None, 0, -1, 9, 10**30, 2.5, "x", [1], {"a": 1}])
def test_a_wrong_param_gets_400_and_no_stack_trace(server: TestClient, beams: Any) -> None:
    answer = ask(server, PICTURE, beams=beams)
    assert answer.status_code == 400
    assert "beams" in answer.json()["message"]
    assert "Traceback" not in answer.text


def test_every_beam_width_in_the_range_is_accepted(server: TestClient) -> None:
    for beams in (1, 8):
        (row,) = ask(server, PICTURE, beams=beams).json()["predictions"]
        assert row["error"] == ""


def test_captions_are_chosen_as_the_index_that_comes_with_the_model_says(tmp_path: Path) -> None:
    checkpoint = small()
    checkpoint.save(tmp_path / "checkpoint")
    captioner = Captioner(checkpoint)
    decoding = DecodingSettings(method="consensus", samples=20, temperature=1.0, neighbours=1, likelihood=0, seed=0)
    sampled = captioner.several([decode(jpeg(), 10**6)], 8)[0]
    facts = {"model_sha256": weights_hash(tmp_path / "checkpoint"), "decoding": decoding.model_dump()}
    facts["generation"] = PLAIN.model_dump()
    features = captioner.picture_features([jpeg(), jpeg("navy")], "features").astype(np.float16)
    captions = [[" ".join(sampled[-2:]), sampled[-1]], ["nothing like it"]]
    neighbours = Neighbours(features, captions, ["0" * 64, "1" * 64], facts)
    neighbours.write(tmp_path / "neighbours")
    served = pyfunc.CaptionModel()
    served.load_context(Namespace(artifacts={name: str(tmp_path / name) for name in ("checkpoint", "neighbours")}))
    (found,) = served.predict(None, pd.DataFrame({"image": [jpeg()]}))["caption"]
    by_beam_search = captioner.caption([picture(jpeg(), checkpoint.image_size, MemoryBudget(10**9))], beams=3)
    captioner.choose_by(decoding, neighbours)
    assert [found] == captioner.caption([picture(jpeg(), checkpoint.image_size, MemoryBudget(10**9))], beams=3)
    assert [found] != by_beam_search


def test_a_version_without_the_index_keeps_its_generation_settings(tmp_path: Path) -> None:
    checkpoint = small()
    checkpoint.save(tmp_path / "checkpoint")
    word = checkpoint.tokenizer.decode([5])
    generation = PLAIN.model_copy(update={"prompt": word, "min_tokens": 3})
    beam = DecodingSettings(method="beam", samples=1, temperature=1.0, neighbours=1, likelihood=0, seed=0)
    (tmp_path / "settings").mkdir()
    written_before = beam.model_dump(exclude={"likelihood"})  # by a version of the code without it
    content = {"generation": generation.model_dump(), "decoding": written_before}
    (tmp_path / "settings/neighbours.json").write_text(json.dumps(content))
    served = pyfunc.CaptionModel()
    served.load_context(Namespace(artifacts={name: str(tmp_path / name) for name in ("checkpoint", "settings")}))
    (found,) = served.predict(None, pd.DataFrame({"image": [jpeg()]}))["caption"]
    assert found.startswith(word)


def test_the_memory_of_each_picture_is_reserved() -> None:
    """Requests arrive in threads, and a picture of some kilobytes can take half a gigabyte."""
    sizes: list[int] = []

    class Recorded(MemoryBudget):
        @contextmanager
        def reserve(self, size: int) -> Iterator[None]:
            sizes.append(size)
            yield

    picture(PICTURE, 32, Recorded(10**9))
    assert sizes == [OpenedPicture(jpeg(), 10**9, at_least=64).memory]
