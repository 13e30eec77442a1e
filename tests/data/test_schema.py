from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pipeline import build, ingest
from pipeline.config import params
from pipeline.data.dataset import Example
from pipeline.data.split import SPLITS
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, set_params

SCHEMA = json.loads((ROOT / "docs/dataset.schema.json").read_text())
GOOD = asdict(
    Example("0" * 64 + ".jpg", ["a red boat", "so good 🔥"], "0" * 64, ["a", "b"], ["x.zip:1.jpg", "x.zip:1.jpg"])
)


def fits(line: dict[str, Any]) -> bool:
    return Draft202012Validator(SCHEMA).is_valid(line)


def test_every_line_of_a_built_data_set_matches_the_schema(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=60, seed=3)
    write_sample(workspace / "data/raw/more", pictures=30, seed=3)
    set_params(workspace, {"ingest.sources": ["sample", "more"]})
    for source in ("sample", "more"):
        ingest.run(params.load(), Namespace(source=source))
    build.run(params.load(), Namespace())
    lines = [
        json.loads(line)
        for split in SPLITS
        for line in (Path("data/dataset") / split / "captions.jsonl").read_text().splitlines()
    ]
    assert len(lines) > 50
    assert any(len(line["sources"]) == 2 for line in lines)
    for line in lines:
        Draft202012Validator(SCHEMA).validate(line)


def test_the_schema_is_valid_and_describes_every_field_of_an_example() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    names = [field.name for field in fields(Example)]
    assert list(SCHEMA["properties"]) == SCHEMA["required"] == names
    assert all(SCHEMA["properties"][name]["description"] for name in names)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file_name", "0.jpg"),
        ("file_name", f"../{'0' * 64}.jpg"),
        ("captions", []),
        ("captions", [""]),
        ("captions", ["twice", "twice"]),
        ("captions", "a caption"),
        ("captions", [None]),
        ("sha256", "0" * 63),
        ("sha256", "0" * 65),
        ("sha256", "A" * 64),
        ("sources", []),
        ("sources", ["a", "a"]),
        ("origins", []),
        ("origins", [1]),
        ("more", "fields"),
    ],
)
def test_a_line_with_an_invalid_field_is_rejected(field: str, value: object) -> None:
    assert fits(GOOD)
    assert not fits(GOOD | {field: value})


@pytest.mark.parametrize("field", list(GOOD))
def test_a_line_without_a_field_is_rejected(field: str) -> None:
    assert not fits({name: value for name, value in GOOD.items() if name != field})
