"""Votes between versions: saved once, the last one counts, tallied, and published to MLflow."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config import params
from pipeline.config.errors import DataError, TemporaryError
from pipeline.data.images import identity
from pipeline.serving import feedback, journal
from pipeline.serving.choice import choose_challenger
from pipeline.serving.corrections import Corrections, Said
from pipeline.serving.votes import FILE, Choice, Pair, Votes, tallies
from pipeline.tracking import registry, runs
from tests.conftest import jpeg

MODEL = "image-captioning"
PAIR = Pair(MODEL, 1, 2, "a red car", "a red bus")
PHOTOS = [jpeg("red", (40 + number, 30)) for number in range(40)]


def test_a_vote_is_a_line_and_the_same_vote_twice_is_one(workspace: Path) -> None:
    votes = Votes()
    saved = votes.cast(" ann ", PHOTOS[0], PAIR, "challenger")
    assert (saved.who, saved.sha256, saved.choice) == ("ann", identity(PHOTOS[0]), "challenger")
    assert votes.cast("ann", PHOTOS[0], PAIR, "challenger") == saved
    assert votes.read() == [saved]
    assert FILE.read_bytes().count(b"\n") == 1
    with pytest.raises(DataError, match="your name is empty"):
        votes.cast(" ", PHOTOS[0], PAIR, "tie")


def test_a_persons_last_vote_about_two_versions_counts_whichever_is_champion_then(workspace: Path) -> None:
    votes = Votes()
    votes.cast("ann", PHOTOS[0], PAIR, "challenger")
    votes.cast("bob", PHOTOS[0], PAIR, "tie")
    turned = Pair(MODEL, 2, 1, PAIR.challenger_said, PAIR.said)
    last = votes.cast("ann", PHOTOS[0], turned, "neither")
    assert {(vote.who, vote.choice) for vote in votes.counting()} == {("ann", "neither"), ("bob", "tie")}
    assert votes.cast("ann", PHOTOS[0], turned, "neither") == last
    assert len(votes.read()) == 3


def test_many_writers_lose_nothing(workspace: Path) -> None:
    def vote(number: int) -> str:
        return Votes().cast(f"person {number % 4}", PHOTOS[number], PAIR, "tie").id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(vote, range(40)))
    assert sorted(vote.id for vote in Votes().read()) == sorted(made)


def test_a_writer_that_is_killed_within_a_line_leaves_the_votes_before_and_the_next_goes_on(workspace: Path) -> None:
    first = Votes().cast("ann", PHOTOS[0], PAIR, "tie")
    if os.fork() == 0:

        def half(file: Any, data: bytes) -> None:
            file.write(data[: len(data) // 2])
            os._exit(9)

        journal._write = half
        Votes().cast("ann", PHOTOS[1], PAIR, "tie")
        os._exit(0)
    os.wait()
    assert not FILE.read_bytes().endswith(b"\n")
    assert Votes().read() == [first]
    second = Votes().cast("ann", PHOTOS[2], PAIR, "tie")
    assert Votes().read() == [first, second]


def test_the_tally_counts_both_sides_with_an_interval(workspace: Path) -> None:
    choices: list[Choice] = [*["challenger"] * 15, *["champion"] * 5, "tie", "tie", "neither"]  # type: ignore[list-item]
    for number, choice in enumerate(choices):
        Votes().cast("ann" if number % 2 else "bob", PHOTOS[number], PAIR, choice)
    Votes().cast("ann", PHOTOS[0], Pair("another", 1, 2, "x", "y"), "tie")
    found = tallies(Votes().counting(), MODEL)
    (newer,), (older,) = found[2], found[1]
    assert (newer.better, newer.worse, newer.tie, newer.neither, newer.people) == (15, 5, 2, 1, 2)
    assert (older.better, older.worse) == (5, 15)
    # Wilson's interval of 15 of 20: Wilson (1927), with z = 1.96.
    assert newer.interval == pytest.approx((0.531, 0.888), abs=0.001)
    assert str(newer) == (
        "against version 1: 15 better, 5 worse, 2 both good, 1 both bad, by 2 people"
        " (75% preferred it, 95% interval 53% to 89%)"
    )


def unreachable(*words: object) -> None:
    raise TemporaryError("MLflow can't be reached")


def test_votes_and_corrections_become_tags_of_the_versions_and_a_dead_mlflow_loses_none(
    workspace: Path, mlflow_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_db, workspace)
    store = runs.client()
    store.create_registered_model(MODEL)
    for _ in range(2):
        store.create_model_version(MODEL, source=workspace.as_uri())
    Votes().cast("ann", PHOTOS[0], PAIR, "challenger")
    Votes().cast("ann", PHOTOS[0], Pair(MODEL, 1, 9, "a", "b"), "tie")
    Corrections().save("ann", "accept", PHOTOS[0], caption="a red car", said=Said("a red car", MODEL, 1))
    Corrections().save("ann", "edit", PHOTOS[1], caption="a red van", said=Said("a red bus", MODEL, 1))
    done = CliRunner().invoke(cli.app, ["votes"])
    assert done.exit_code == 0, done.output
    assert "version 2 against version 1: 1 better, 0 worse" in done.output
    assert registry.tags(store, MODEL, 2)["people.votes"].startswith("against version 1: 1 better, 0 worse")
    tags = registry.tags(store, MODEL, 1)
    assert tags["people.votes"].startswith("against version 2: 0 better, 1 worse")
    assert tags["people.corrections"] == "1 accepted, 1 edited, 0 rejected (50% right)"
    assert "Votes: against version 2" in store.get_model_version(MODEL, "1").description

    with monkeypatch.context() as patch:
        patch.setattr(registry, "note", lambda *words: pytest.fail("the tags are up to date"))
        feedback.publish(params.load())
    Votes().cast("bob", PHOTOS[0], PAIR, "champion")
    with monkeypatch.context() as patch:
        patch.setattr(registry, "note", unreachable)
        assert CliRunner().invoke(cli.app, ["corrections", "forget", "ann"]).exit_code == 75
    assert (len(Votes().read()), len(Corrections().read())) == (3, 2), "nothing was deleted"
    said = CliRunner().invoke(cli.app, ["corrections", "forget", "ann"]).output
    assert "deleted 2 corrections and 2 votes by ann" in said
    assert [vote.who for vote in Votes().read()] == ["bob"]
    assert registry.tags(store, MODEL, 2)["people.votes"].startswith("against version 1: 0 better, 1 worse")
    assert "people.corrections" not in registry.tags(store, MODEL, 1)
    CliRunner().invoke(cli.app, ["corrections", "forget", "bob"])
    assert Votes().read() == []
    assert not {"people.votes", "people.corrections"} & registry.tags(store, MODEL, 2).keys()


def test_the_challenger_is_the_newest_version_that_is_newer_than_the_champion(workspace: Path, mlflow_db: Path) -> None:
    shutil.copy(mlflow_db, workspace)
    store = runs.client()
    store.create_registered_model(MODEL)

    def challenger() -> int | None:
        found = choose_challenger(store, MODEL, "champion")
        return found and found.version

    assert challenger() is None
    for _ in range(4):
        store.create_model_version(MODEL, source=workspace.as_uri())
    assert challenger() is None, "without a champion the newest version is served"
    registry.make_champion(store, MODEL, 2)
    assert challenger() == 4
    registry.note(store, MODEL, 4, {registry.ROLLED_BACK: "today"})
    assert challenger() == 3
    store.set_registered_model_alias(MODEL, "challenger", "1")
    assert challenger() == 1
    registry.make_champion(store, MODEL, 1)
    assert challenger() is None
