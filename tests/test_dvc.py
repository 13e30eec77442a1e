"""dvc.yaml says exactly what each stage is made of: neither a file too few (stale results) nor one too many."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.closure import closure
from pipeline.params import Params
from tests.conftest import ROOT

OF_NO_STAGE = {"promote", "flow", "retrain"}  # sections of params that make nothing stale
STAGES = ["ingest", "build", "finetune", "evaluate", "register"]


def graph() -> dict[str, Any]:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def code_of(stage: str) -> set[str]:
    files = {path.as_posix() for path in closure(f"pipeline.{stage}")}
    if stage == "build":
        files.add("pipeline/data/page.html.jinja")
    if stage == "evaluate":
        files |= {"pipeline/score/gallery.html.jinja", "pipeline/score/gallery.js"}
    if stage == "register":  # the registered model takes this along
        files |= {path.as_posix() for path in closure("pipeline.served")}
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_deps_are_exactly_the_files_that_it_is_made_of(stage: str) -> None:
    assert {dep for dep in graph()[stage]["deps"] if dep.startswith("pipeline/")} == code_of(stage)


@pytest.mark.parametrize("stage", [*STAGES, "served"])
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


def test_the_pipeline_imports_neither_prefect_nor_dvc_and_mlflow_in_three_places_only() -> None:
    found: dict[str, set[str]] = {}
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(file.relative_to(ROOT / "pipeline").as_posix())
    assert not {"prefect", "dvc", "flows"} & set(found)
    assert found["mlflow"] == {"tracking.py", "registry.py", "served.py"}
    assert found["zipfile"] == {"data/archive.py", "data/records.py", "drawn/sample.py"}


def test_no_stage_knows_how_the_sample_is_drawn() -> None:
    for stage in STAGES:
        assert not {file for file in code_of(stage) if file.startswith("pipeline/drawn/")}


def test_the_checkpoint_that_is_shipped_makes_stale_what_starts_from_it() -> None:
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")["finetune"]["checkpoint"]
    for stage in ("finetune", "evaluate"):
        assert shipped in graph()[stage]["deps"]
