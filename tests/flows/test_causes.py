"""Why a stage is stale, in a real DVC repository, and whether that is a reason to retrain."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import causes
from flows.workspace.dvc_repo import opened, used_stages
from tests.conftest import run

DVC_YAML = """
stages:
  first:
    cmd: cat data > made
    deps: [data, pipeline/code.py]
    outs: [made]
  second:
    cmd: cat made > last
    deps: [made]
    params: [epochs]
    outs: [last]
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pipeline").mkdir()
    Path("pipeline/code.py").write_text("1\n")
    Path("data").write_text("1\n")
    Path("params.yaml").write_text("epochs: 1\n")
    Path("dvc.yaml").write_text(DVC_YAML)
    assert run(tmp_path, "dvc", "init", "-q", "--no-scm").returncode == 0
    return tmp_path


def stale() -> dict[str, list[causes.Cause]]:
    from dvc.repo import lock_repo

    with opened() as repo, lock_repo(repo):
        return {stage.addressing: found for stage in used_stages(repo) if (found := causes.of_stage(stage))}


def test_each_cause_is_named_for_the_stage_that_it_concerns(repo: Path) -> None:
    assert stale() == {"first": ["outputs"], "second": ["outputs"]}
    assert run(repo, "dvc", "repro", "-q").returncode == 0
    assert stale() == {}
    Path("pipeline/code.py").write_text("22\n")
    assert stale() == {"first": ["code"]}  # the second stage is stale only once the first has other outputs
    Path("params.yaml").write_text("epochs: 2\n")
    assert stale() == {"first": ["code"], "second": ["params"]}
    Path("data").write_text("22\n")
    assert stale() == {"first": ["code", "data"], "second": ["params"]}


@pytest.mark.parametrize(
    ("found", "setting", "retrains"),
    [
        (["data"], "none", True),
        (["outputs"], "none", True),
        (["params"], "none", False),
        (["params"], "params", True),
        (["code"], "params", False),
        (["code", "params"], "params", True),
        (["code"], "all", True),
        (["code", "data"], "none", True),
    ],
)
def test_the_setting_decides_which_causes_retrain(found: list[str], setting: str, retrains: bool) -> None:
    assert (causes.no_reason({"build": found}, setting) is None) is retrains


def test_the_message_names_the_stages_and_the_fix() -> None:
    assert causes.no_reason({"build": ["code"], "evaluate": ["code"]}, "params") == (
        "nothing new: only code changed (stale: build, evaluate); to retrain, set retrain.on_code_change to all or run"
        " `image-captioning train`"
    )
