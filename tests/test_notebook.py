"""The notebook runs from the first cell to the last, in a fresh clone, as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.params import load
from tests.conftest import ROOT, environment
from tests.test_readme import MAKE, Reader, reader  # noqa: F401

NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_the_notebook_replaces_a_line_that_params_have() -> None:
    source = "".join("".join(cell["source"]) for cell in cells("code"))
    assert 'replace("architectures: []", "architectures: [cnn-lstm]")' in source
    assert (ROOT / "params.yaml").read_text().count("architectures: []") == 1


@pytest.mark.slow
def test_every_cell_runs(reader: Reader, tmp_path: Path) -> None:  # noqa: F811
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # `make setup` has been run for the tests themselves
        cell.source = cell.source.replace('run("make setup")', f'run("{MAKE} setup")')
    place = {"metadata": {"path": str(reader.folder / "docs")}}
    env = environment(HOME=str(reader.home), IPYTHONDIR=str(tmp_path))
    nbclient.NotebookClient(notebook, timeout=900, resources=place).execute(env=env)
    printed = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "starts from cnn-attention" in printed
    assert "model                CIDEr-D" in printed
    assert "| cnn-attention (the model) |" in printed
    assert "| cnn-lstm |" in printed
    assert any("image/png" in o.get("data", {}) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert (reader.home / "Downloads/my-model.zip").is_file()
    assert load(reader.folder / "params.yaml").compare.architectures == ["cnn-lstm"]
