"""dvc.yaml names the code that decides each stage's result, and nothing that decides no result."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config.params import Params
from pipeline.runtime.import_closure import INFRASTRUCTURE, closure, deciding
from tests.conftest import ROOT

OF_NO_STAGE = {"promote", "runtime", "flow", "retrain", "serving"}  # sections of params that make nothing stale
STAGES = ["ingest", "build", "finetune", "compare", "evaluate", "register"]


def graph() -> dict[str, Any]:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def declared(stage: str) -> list[Path]:
    return [Path(dep) for dep in graph()[stage]["deps"] if dep.startswith("pipeline/")]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_all_code_that_decides_its_result(stage: str) -> None:
    left_out = [
        file for file in deciding(f"pipeline.{stage}") if not any(file.is_relative_to(dep) for dep in declared(stage))
    ]
    assert not left_out, f"dvc.yaml: name these in the deps of {stage}, or move them to {INFRASTRUCTURE}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_no_code_that_it_does_not_use(stage: str) -> None:
    used = deciding(f"pipeline.{stage}")
    for dep in declared(stage):
        assert (ROOT / dep).exists(), dep
        assert any(file.is_relative_to(dep) for file in used), f"{stage} does not use {dep}"


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        ("finetune", "pipeline/training"),
        ("compare", "pipeline/training"),
        ("finetune", "pipeline/evaluation"),
        ("evaluate", "pipeline/evaluation"),
    ],
)
def test_training_and_evaluation_name_no_folder_with_code_that_they_do_not_use(stage: str, folder: str) -> None:
    """A new metric, for example, does not retrain."""
    used = deciding(f"pipeline.{stage}")
    for file in (ROOT / folder).rglob("*.py"):
        path = file.relative_to(ROOT)
        if file.name != "__init__.py" and any(path.is_relative_to(dep) for dep in declared(stage)):
            assert path in used, f"{path} makes {stage} stale, which does not use it"


def test_no_stage_names_infrastructure_or_runtime_params() -> None:
    for stage, settings in graph().items():
        for dep in declared(stage):
            for folder in map(Path, INFRASTRUCTURE):
                assert not dep.is_relative_to(folder)
                assert not folder.is_relative_to(dep)
        assert not [param for param in settings["params"] if param.startswith("runtime")]


# `compare` imports what `finetune` imports.
@pytest.mark.parametrize("stage", [*(stage for stage in STAGES if stage != "compare"), "tracking.pyfunc"])
def test_the_closure_read_from_the_source_covers_what_is_imported_when_it_runs(stage: str) -> None:
    """All modules are imported for real, also those that the source imports within functions."""
    files = [path.as_posix().removesuffix(".py").replace("/", ".") for path in closure(f"pipeline.{stage}")]
    probe = (
        "import importlib, sys\n"
        f"for name in {files!r}: importlib.import_module(name)\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('pipeline') and m.__file__), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {Path(line).relative_to(ROOT).as_posix() for line in done.stdout.splitlines()}
    assert {file for file in imported if not file.endswith("__init__.py")} == {
        path.as_posix() for path in closure(f"pipeline.{stage}")
    }


def test_packages_hold_nothing_but_a_docstring() -> None:
    """So that leaving them out of the deps leaves nothing out."""
    for file in (ROOT / "pipeline").rglob("__init__.py"):
        (only,) = ast.parse(file.read_text()).body
        assert isinstance(only, ast.Expr)


def test_the_params_that_stages_name_exist_and_none_is_left_out() -> None:
    named = {param for stage in graph().values() for param in stage["params"]}
    keys = {
        f"{section}.{key}"
        for section, field in Params.model_fields.items()
        if section not in OF_NO_STAGE
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    keys = {key.replace("register_.", "register.") for key in keys}
    for key in keys:
        assert key in named or key.split(".")[0] in named, f"{key} makes nothing stale"
    for param in named:
        assert param in keys or any(key.startswith(f"{param}.") for key in keys), f"{param} is no param"


def test_a_new_source_does_not_ingest_the_old_ones_again() -> None:
    assert "ingest.sources" not in graph()["ingest"]["params"]
    assert "ingest" not in graph()["ingest"]["params"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails_leaves_its_last_outputs(stage: str) -> None:
    """DVC deletes what a stage makes before it runs, unless told to keep it."""
    for kind in ("outs", "metrics"):
        for out in graph()[stage].get(kind, []):
            ((_, settings),) = out.items()
            assert settings["persist"] is True


def test_the_pipeline_imports_neither_prefect_nor_dvc_and_mlflow_in_six_places_only() -> None:
    found: dict[str, set[str]] = {}
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(file.relative_to(ROOT / "pipeline").as_posix())
    assert not {"prefect", "dvc", "flows"} & set(found)
    doors = ("runs", "registry", "registration", "deletion", "downloads", "pyfunc")
    assert found["mlflow"] == {f"tracking/{name}.py" for name in doors}
    zips = {"data/sources/archive.py", "data/dataset.py", "synthetic/sample.py", "runtime/zip_member.py"}
    assert found["zipfile"] == zips


def test_no_stage_knows_how_the_sample_is_drawn() -> None:
    for stage in STAGES:
        assert not [file for file in closure(f"pipeline.{stage}") if file.is_relative_to("pipeline/synthetic")]


def test_the_checkpoint_that_is_shipped_makes_stale_what_starts_from_it() -> None:
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")["finetune"]["checkpoint"]
    for stage in ("finetune", "evaluate"):
        assert shipped in graph()[stage]["deps"]
