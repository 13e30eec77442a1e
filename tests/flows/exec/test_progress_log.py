from __future__ import annotations

import subprocess
import sys

import pytest

from flows.exec.progress_log import Throttled, percent
from tests.conftest import ROOT, environment

BARS = """
import time
from pipeline.runtime.progress import progress_bar
for i in progress_bar(range(20), desc="finetune", unit=" steps"):
    time.sleep(0.05)
    if i == 12:
        print("finetune: epoch 1 of 2", flush=True)
progress_bar(range(3), desc="features", shown=False)
"""


def bars(**more: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", BARS], cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_stages_bars_are_lines_that_a_flow_can_read_and_other_lines_stay_whole() -> None:
    lines = bars(IMAGE_CAPTIONING_PROGRESS="0.2")
    assert "finetune: epoch 1 of 2" in lines
    found = [percent(line) for line in lines if line != "finetune: epoch 1 of 2"]
    assert len(found) >= 3
    assert all(found)
    assert found[-1] == ("finetune", 100)


def test_without_a_terminal_or_a_reader_there_are_none() -> None:
    assert bars() == ["finetune: epoch 1 of 2"]


@pytest.mark.parametrize(
    "line",
    [
        "finetune: epoch 1/2  train loss 5.4326  distinct captions 75%",
        "build: 97 % of the words are known",
        "build: 5% of them are unknown",
    ],
)
def test_other_lines_with_percentages_are_no_bars(line: str) -> None:
    assert percent(line) is None


def test_of_bars_the_first_and_last_line_and_one_now_and_then_are_told() -> None:
    logged: list[str] = []
    shown: list[int] = []
    throttled = Throttled(logged.append, lambda name, done, line: shown.append(done), seconds=1000)
    for line in ("finetune: 1% 1 of 100", "finetune: 2% 2 of 100", "x", "features: 5% 1 of 9", "finetune: 100% 9 of 9"):
        throttled(line)
    throttled("finetune: 100% 9 of 9")
    assert logged == ["finetune: 1% 1 of 100", "x", "features: 5% 1 of 9", "finetune: 100% 9 of 9"]
    assert shown == [1, 2, 5, 100, 100]
