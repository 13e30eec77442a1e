"""Quality on synthetic scenes: the accuracy of `git-demo`, and the effect of fine-tuning it."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import build, finetune, ingest
from pipeline.config import params
from pipeline.data.text import clean
from pipeline.models.captioner import Captioner
from pipeline.runtime.atomic_files import read_json
from pipeline.synthetic.evaluate_attributes import evaluate_attributes
from pipeline.synthetic.sample import write_sample
from pipeline.synthetic.scenes import Scene, draw, random_scene, unseen_pairs
from pipeline.synthetic.words import names_all, plain
from tests.conftest import ROOT, run, set_params

GIT_DEMO = ROOT / "models" / "git-demo"


def test_git_demo_is_as_accurate_as_its_model_card_states() -> None:
    card = read_json(GIT_DEMO / "training.json")
    figures = evaluate_attributes(Captioner.from_folder(GIT_DEMO), scenes=120, seed=99)
    for kind, measured in figures.items():
        for key in ("named", "plain"):
            # Two standard errors of 120 scenes, plus a margin.
            p = card[kind][key]
            assert abs(measured[key] - p) < 2 * (p * (1 - p) / 120) ** 0.5 + 0.04, (kind, key)


def test_git_demo_names_the_left_object_first() -> None:
    rng, grain = random.Random(8), np.random.default_rng(8)
    scenes: list[Scene] = [random_scene(rng, two=1.0, avoid=unseen_pairs()) for _ in range(40)]
    captions = Captioner.from_folder(GIT_DEMO).caption([draw(scene, grain) for scene in scenes])
    lefts = [" ".join(caption.split()[:4]) for caption in captions]
    assert sum(left == " ".join(plain(scene).split()[:4]) for left, scene in zip(lefts, scenes, strict=True)) > 36


def test_a_short_fine_tune_learns_the_style_and_keeps_attribute_accuracy(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=120, seed=3)
    changes = {"checkpoint": str(GIT_DEMO), "freeze": "image_encoder", "epochs": 3, "batch_size": 8}
    set_params(workspace, {f"finetune.{key}": value for key, value in changes.items()})
    ingest.run(params.load(), Namespace(source="sample"))
    build.run(params.load(), Namespace())
    finetune.run(params.load(), Namespace())

    rng, grain = random.Random(7), np.random.default_rng(7)
    scenes = [random_scene(rng, two=0.0, avoid=unseen_pairs()) for _ in range(60)]
    pictures = [draw(scene, grain) for scene in scenes]
    before = Captioner.from_folder(GIT_DEMO).caption(pictures)
    after = Captioner.from_folder(Path("models/finetune")).caption(pictures)
    assert not any("#" in caption for caption in before)
    assert sum("#" in caption for caption in after) > 50
    assert sum(names_all(clean(caption), scene) for caption, scene in zip(after, scenes, strict=True)) > 36


@pytest.mark.slow
def test_the_demo_reaches_the_scores_in_the_readme(clone: Callable[[], Path]) -> None:
    folder = clone()
    assert run(folder, "dvc", "pull", "-q", "-r", "sample", "data/raw/sample.dvc").returncode == 0
    for stage in ("build", "finetune", "evaluate"):  # one at a time, so that none exceeds the time limit
        done = run(folder, "dvc", "repro", stage)
        assert done.returncode == 0, done.stderr
    report = read_json(folder / "reports/evaluate.json")
    cider = {name: value["CIDEr-D"] for name, value in report.items() if isinstance(value, dict)}
    assert cider["model"] > 2 * cider["before_finetuning"]
    assert cider["model"] > 1.5 * max(cider["nearest_picture"], cider["most_frequent"])
    figures = evaluate_attributes(Captioner.from_folder(folder / "models/finetune"))
    assert figures["unseen_combinations"]["named"] >= 0.85
