"""The flow against a real Prefect server, in a workspace where the loop has run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
calls = []
def run(stage, tell):
    calls.append(stage)
    raise stages.StageError({code}, f"{{stage}}: its words")
stages.run = run
train.run_stage = train.run_stage.with_options(retry_delay_seconds=0)
print(train.main(), *calls)
"""


@pytest.mark.parametrize(
    ("code", "printed"), [(75, "75 ingest ingest ingest ingest"), (-9, "137" + " ingest" * 4), (65, "65 ingest")]
)
def test_a_stage_is_tried_again_only_where_that_can_help(tmp_path: Path, code: int, printed: str) -> None:
    done = run(ROOT, sys.executable, "-c", RETRIES.format(code=code), PREFECT_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-1] == printed
