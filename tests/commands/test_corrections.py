"""`image-captioning corrections` lists and deletes what people saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.serving.corrections import Corrections
from tests.conftest import jpeg, set_params


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["corrections", *words])
    return done.exit_code, done.output


def test_corrections_are_listed_by_person_with_the_next_step(workspace: Path) -> None:
    assert "none in data/raw/corrections yet" in command()[1]
    for who in ("ann", "ann", "bob"):
        Corrections().save(who, "add", jpeg(), caption=f"a caption {len(Corrections().read())}")
    code, said = command()
    assert code == 0
    assert "ann: 2 add; last 20" in said
    assert "3 corrections of 1 pictures by 2 people" in said
    assert "add `corrections` to ingest.sources" in said
    set_params(workspace, {"ingest.sources": ["sample", "corrections"]})
    assert "to train on new ones run `dvc add data/raw/corrections`" in command()[1]


def test_a_persons_corrections_are_deleted(workspace: Path) -> None:
    Corrections().save("ann", "add", jpeg(), caption="hers")
    assert "deleted 1 corrections and 0 votes by ann, and 1 pictures" in command("forget", "ann")[1]
    assert Corrections().read() == []
    code, said = command("forget", "ann")
    assert (code, "only by nobody" in said) == (65, True)


@pytest.mark.parametrize("words", [["forget"], ["remember"]])
def test_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(*words)
    assert code == 78
