"""What the shipped sample and params promise: a model that learned something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.files import read_json
from tests.conftest import run


@pytest.mark.slow
def test_the_demo_beats_both_naive_answers(clone: Callable[[], Path]) -> None:
    folder = clone()
    assert run(folder, "dvc", "pull", "-q", "-r", "sample", "data/raw/sample.dvc").returncode == 0
    for stage in ("build", "finetune", "evaluate"):  # one at a time, so that none is longer than the test's patience
        done = run(folder, "dvc", "repro", stage)
        assert done.returncode == 0, done.stderr
    report = read_json(folder / "reports/evaluate.json")
    assert report["model"]["CIDEr-D"] > 1.2 * report["nearest_picture"]["CIDEr-D"]
    assert report["model"]["CIDEr-D"] > 2 * report["most_frequent"]["CIDEr-D"]
