"""The flow against a real Prefect server, in a workspace where the loop has run."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.files import sha256_of
from tests.conftest import ROOT, run

OUTPUTS = ("data/ingest", "data/dataset", "models/finetune", "reports", "dvc.lock")


def result(folder: Path) -> str:
    return sha256_of(*(folder / name for name in OUTPUTS))


def test_the_flow_has_the_result_of_dvc_repro_and_fails_with_the_stages_own_words(loop: Path, tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    settled = run(loop, "dvc", "repro")
    assert settled.returncode == 0, settled.stderr
    before = result(loop)

    done = run(loop, sys.executable, "-m", "flows.train", **home)
    assert done.returncode == 0, done.stderr
    assert "every stage is up to date" in done.stdout
    for stage in ("ingest", "build", "finetune", "evaluate", "register"):
        assert f"Task run '{stage}'" in done.stderr
    assert result(loop) == before

    table = loop / "data/raw/small/captions.csv"
    good = table.read_bytes()
    table.unlink()
    table.write_text("picture,words\n")
    failed = run(loop, sys.executable, "-m", "flows.train", **home)
    table.write_bytes(good)
    run(loop, "dvc", "repro")
    assert failed.returncode == 65
    assert failed.stderr.splitlines()[-1].startswith("flows.train: ingest: data/raw/small/captions.csv: row 1")
    assert result(loop) == before


RETRIES = """
from flows import stages, train
codes = {"ingest": 75, "build": -9, "finetune": 65}
calls = []
def run(stage, tell):
    calls.append(stage)
    raise stages.StageError(codes[stage], f"{stage}: its words")
stages.run = run
train.run_stage = train.run_stage.with_options(retry_delay_seconds=0)
for stage in codes:
    stages.STAGES = (stage,)
    print(train.main(), *calls)
    calls.clear()
"""


def test_a_stage_is_tried_again_only_where_that_can_help(tmp_path: Path) -> None:
    done = run(ROOT, sys.executable, "-c", RETRIES, PREFECT_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-3:] == ["75" + 4 * " ingest", "137" + 4 * " build", "65 finetune"]
