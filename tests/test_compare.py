from __future__ import annotations

import os
import shutil
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from pipeline import compare, evaluate, register
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError
from pipeline.evaluation import architectures, pages
from pipeline.models import factory
from pipeline.models.cnn import encoder
from pipeline.models.weights import weights_hash
from pipeline.runtime import costs
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.tracking import comparison, runs
from pipeline.training.optimization import learning_rate
from tests.conftest import ROOT, inside, run, set_params
from tests.models.test_cnn_captioner import tiny_encoder
from tests.training.test_resume import start, wait_for_state


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, trained_once: Path) -> Path:
    """A workspace with a trained model (`scratch`) and one compared architecture (`cnn-lstm`)."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(trained_once, folder, dirs_exist_ok=True)
    set_params(folder, {"compare.architectures": ["cnn-lstm"], "compare.epochs": 1})
    with inside(folder) as patch:
        patch.setattr(encoder, "imagenet_encoder", tiny_encoder)
        patch.setattr(encoder, "check_installed", lambda: None)
        train("cnn-lstm")
    return folder


@pytest.fixture
def compared(once: Path, workspace: Path) -> Path:
    """A copy of that workspace, the current folder while the test runs."""
    shutil.copytree(once, workspace, dirs_exist_ok=True)
    return workspace


def train(architecture: str) -> str:
    return compare.run(params.load(), Namespace(architecture=architecture))


def test_an_architecture_is_trained_as_finetune_would_train_it(compared: Path) -> None:
    set_params(compared, {"compare.architectures": ["scratch"], "compare.epochs": None})
    train("scratch")
    assert weights_hash(Path("models/compare/scratch")) == weights_hash(Path("models/finetune"))
    assert Path("reports/compare/scratch.csv").read_bytes() == Path("reports/finetune.csv").read_bytes()
    evaluate.run(params.load(), Namespace())
    register.run(params.load(), Namespace())
    store = runs.client()
    (shared,) = store.search_runs(
        [runs.experiment(store, "image-captioning")], "params.`finetune.checkpoint` = 'scratch'"
    )
    assert "mlflow.parentRunId" not in shared.data.tags


def test_settings_of_the_model_that_do_not_fit_the_architecture_are_replaced(workspace: Path) -> None:
    set_params(workspace, {"finetune.learning_rate": 0.5, "finetune.epochs": 9})
    loaded = params.load()
    model = loaded.finetune.model_copy(
        update={"checkpoint": "base", "new_tokens": 5, "lora": loaded.finetune.lora.model_copy(update={"rank": 4})}
    )
    found = loaded.compare.settings(model, "cnn-rnn")
    assert (found.checkpoint, found.freeze, found.learning_rate, found.epochs) == (
        "cnn-rnn",
        "image_encoder",
        "auto",
        9,
    )
    assert loaded.compare.settings(model, "scratch").freeze == "none"
    assert type(found).model_validate(found.model_dump()) == found


def test_all_architectures_stand_in_one_table_with_paired_intervals_and_costs(compared: Path) -> None:
    evaluate.run(params.load(), Namespace())
    report = read_json(Path("reports/evaluate.json"))
    systems = [name for name, value in report.items() if isinstance(value, dict)]
    assert systems == ["model", "cnn-lstm", "nearest_consensus", "nearest_picture", "most_frequent"]
    value, low, high = report["cnn-lstm"]["model_is_above_by"]["CIDEr-D"]
    assert low <= value <= high
    for system in ("model", "cnn-lstm"):
        cost = report[system]["cost"]
        assert 0 < cost["trained_parameters"] <= cost["parameters"]
        assert cost["training_seconds"] > 0
        assert cost["captions_per_second"] > 0
    trained = read_json(Path("models/compare/cnn-lstm/training.json"))
    assert trained["trained_parameters"] < trained["parameters"]  # the encoder is frozen
    table = Path("reports/evaluate/architectures.md").read_text()
    assert "| scratch (the model) |" in table
    assert f"({-high:+.3f} to {-low:+.3f})" in table
    page = Path("reports/evaluate/gallery.html").read_text()
    assert "<h2>Architectures</h2>" in page
    assert page.count("<span>cnn-lstm</span>") == 4  # beside the model, on each card
    costs._file(trained["training_key"]).write_text("{")
    evaluate.run(params.load(), Namespace())
    assert "| unknown |" in Path("reports/evaluate/architectures.md").read_text()


def test_the_gallery_shows_where_an_attending_architecture_looked(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "imagenet_encoder", tiny_encoder)
    monkeypatch.setattr(encoder, "check_installed", lambda: None)
    set_params(compared, {"compare.architectures": ["cnn-attention"], "evaluate.gallery_pictures": 3})
    train("cnn-attention")
    monkeypatch.setattr(pages, "_LOOKED", 2)
    evaluate.run(params.load(), Namespace())
    page = Path("reports/evaluate/gallery.html").read_text()
    assert page.count('<dd class="looked" title="where cnn-attention looked before each word">') == 2
    assert page.count("<figcaption") >= 2
    evaluate.run(params.load(), Namespace())
    again = Path("reports/evaluate/gallery.html").read_text()
    maps = [line for line in page.splitlines() if "<figure>" in line]
    assert [line for line in again.splitlines() if "<figure>" in line] == maps


def test_the_table_begins_with_the_highest_score() -> None:
    def system(score: float) -> dict[str, Any]:
        cost = {"parameters": 1, "trained_parameters": 1, "training_seconds": 1.0, "captions_per_second": 1.0}
        return {"CIDEr-D": score, "BLEU-4": 0.1, "intervals_95": {"CIDEr-D": [0, 1]}, "cost": cost}

    report = {"model": system(0.4), "cnn-rnn": system(0.2), "cnn-lstm": system(0.6)}
    found = architectures.rows(report, "model", "git-demo", ["cnn-rnn", "cnn-lstm"])
    assert [row.name for row in found] == ["cnn-lstm", "git-demo (the model)", "cnn-rnn"]


def test_without_architectures_reports_have_no_costs(compared: Path) -> None:
    set_params(compared, {"compare.architectures": []})
    evaluate.run(params.load(), Namespace())
    assert "cost" not in read_json(Path("reports/evaluate.json"))["model"]
    assert not Path("reports/evaluate/architectures.md").exists()


def test_a_better_architecture_does_not_count_as_a_naive_answer() -> None:
    gains = {"CIDEr-D": [-0.5, -0.6, -0.4]}
    report = {"model": {"CIDEr-D": 1.0}, "cnn-attention": {"CIDEr-D": 1.5, "model_is_above_by": gains}}
    assert comparison.comparisons(report, "CIDEr-D") == []


def test_mlflow_shows_an_architecture_below_the_model(compared: Path) -> None:
    evaluate.run(params.load(), Namespace())
    register.run(params.load(), Namespace())
    store = runs.client()
    found = store.search_runs([runs.experiment(store, "image-captioning")])
    of = {r.data.params["finetune.checkpoint"]: r for r in found}
    assert set(of) == {"scratch", "cnn-lstm"}
    child, report = of["cnn-lstm"], read_json(Path("reports/evaluate.json"))
    assert child.data.tags["mlflow.parentRunId"] == of["scratch"].info.run_id
    assert child.data.tags["mlflow.source.name"] == "python -m pipeline.compare"
    assert child.data.metrics["test/CIDEr-D"] == report["cnn-lstm"]["CIDEr-D"]
    assert child.data.metrics["cost/training_seconds"] == report["cnn-lstm"]["cost"]["training_seconds"]
    assert child.info.status == "FINISHED"
    assert of["scratch"].data.metrics["test/CIDEr-D/cnn-lstm"] == report["cnn-lstm"]["CIDEr-D"]
    assert len(store.search_model_versions("name='image-captioning'")) == 1
    shutil.rmtree("models/compare/cnn-lstm")
    with pytest.raises(DataError, match=r"models/compare/cnn-lstm/training.json: not found; run `dvc repro`"):
        register.run(params.load(), Namespace())


def test_a_failure_names_the_architecture_and_the_last_result_stays(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sha256_of(Path("models/compare"))

    def missing() -> None:
        raise ConfigError("params.yaml: finetune.checkpoint: the weights are not installed")

    monkeypatch.setattr(encoder, "check_installed", missing)
    with pytest.raises(ConfigError, match=r"^params.yaml: compare.architectures: cnn-lstm: finetune.checkpoint: the"):
        train("cnn-lstm")
    assert sha256_of(Path("models/compare")) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cnn-foo"], "`architectures` has 'cnn-foo', which is none of scratch, cnn-attention"),
        (["cnn-lstm", "cnn-lstm"], "`architectures` names one twice"),
    ],
)
def test_wrong_architectures_are_reported_in_one_line(names: list[str], message: str, workspace: Path) -> None:
    set_params(workspace, {"compare.architectures": names})
    with pytest.raises(ConfigError) as raised:
        params.load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_architecture_that_params_do_not_name_exits_with_78(workspace: Path) -> None:
    done = run(workspace, sys.executable, "-m", "pipeline.compare", "cnn-lstm")
    assert done.returncode == 78
    assert done.stderr.startswith("compare: params.yaml: compare.architectures: does not name 'cnn-lstm'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "rate"), [("cnn-attention", 3e-3), ("cnn-lstm", 3e-3), ("cnn-rnn", 2e-3), ("cnn-git", 1e-3)]
)
def test_the_automatic_learning_rate_suits_the_architecture(
    name: str, rate: float, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "imagenet_encoder", tiny_encoder)
    settings = params.load().finetune
    model = factory.create(name, settings.scratch, ["a dog"], 20).model
    assert learning_rate(settings, model) == rate
    assert learning_rate(settings.model_copy(update={"learning_rate": 0.25}), model) == 0.25
    monkeypatch.setattr(type(model), "num_parameters", lambda self: 177_000_000)
    if name == "cnn-git":
        assert learning_rate(settings, model) == 5e-5
        lora = settings.lora.model_copy(update={"rank": 8})
        assert learning_rate(settings.model_copy(update={"lora": lora}), model) == 1e-3


def test_the_automatic_learning_rate_of_the_demo_is_the_one_that_its_figures_were_measured_with(
    workspace: Path,
) -> None:
    model = factory.load(ROOT / "models/git-demo").model
    assert learning_rate(params.load().finetune, model) == 1e-3


@pytest.mark.slow
def test_five_kills_do_not_change_an_architecture(compared: Path) -> None:
    set_params(compared, {"compare.architectures": ["scratch"], "compare.epochs": 20, "runtime.state_minutes": 0})
    command = (sys.executable, "-m", "pipeline.compare", "scratch")
    outputs = [compared / "models/compare/scratch", compared / "reports/compare/scratch.json"]
    assert run(compared, *command).returncode == 0
    expected = sha256_of(*outputs)
    shutil.rmtree(outputs[0])
    outputs[1].unlink()
    for step in (4, 12, 25, 37, 50):
        process = start(compared, *command)
        wait_for_state(compared, step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert "compare: resumes from step" in run(compared, *command).stdout
    assert sha256_of(*outputs) == expected


@pytest.mark.slow
def test_dvc_trains_what_is_named_and_nothing_else(loop: Path) -> None:
    set_params(loop, {"compare.architectures": ["scratch"], "compare.epochs": 1})
    done = run(loop, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr

    def ran(output: str) -> list[str]:
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]

    assert ran(done.stdout) == ["compare@scratch", "evaluate", "register"]
    assert not [line for line in run(loop, "git", "status", "--porcelain").stdout.splitlines() if "compare" in line]
    set_params(loop, {"finetune.lora.rank": 2, "finetune.checkpoint": "models/git-demo"})
    stale = run(loop, "dvc", "status").stdout
    assert "finetune:" in stale
    assert "compare@scratch:" not in stale
