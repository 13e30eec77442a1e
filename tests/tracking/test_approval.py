"""Versions that wait for a person's approval, on a real registry."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import params
from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.data.dataset import Example
from pipeline.tracking import champions, registry
from tests.conftest import set_params
from tests.tracking.test_promotion import MODEL, evaluated, half, people, report, roll_back, run, says, store

__all__ = ["says", "store"]  # fixtures


def like_half(example: Example) -> str:
    """Better than `half` for some pictures and worse for others: nobody can say which is better."""
    words = example.captions[0].split()
    return half(example) if int(example.sha256[0], 16) % 2 else " ".join(words[len(words) // 2 :])


def approve(number: int, who: str = "ann", **options: Any) -> str:
    return champions.approve(params.load(), number, who, **options).line


def needed(approval: str) -> None:
    set_params(Path.cwd(), {"promote.approval": approval})


def test_a_borderline_version_waits_until_a_person_approves_it(store: Any, says: Any) -> None:
    needed("borderline")
    says(half)
    assert "is the first champion" in run(), "nothing is in doubt about the first one"
    second = says(like_half)
    said = run()
    assert said.startswith(
        f"version {second} waits for approval (`image-captioning promote --approve {second}`); the champion is"
        " version 1: "
    )
    assert registry.champion(store, MODEL) == 1
    assert report()["decision"] == "waits"
    assert "**Waits for approval; the champion is version 1**" in store.get_model_version(MODEL, "2").description
    assert registry.tags(store, MODEL, 1)["gate.decision"] == "first", "the champion is not decided about"
    assert "waits" in run(), "a second comparison does not promote it either"

    assert approve(second, dry_run=True) == "version 2 would be champion in place of version 1, approved by ann"
    assert registry.champion(store, MODEL) == 1
    assert approve(second, "ann <b>") == "version 2 is champion in place of version 1, approved by ann <b>"
    assert registry.champion(store, MODEL) == second
    tags = registry.tags(store, MODEL, second)
    assert (tags["gate.decision"], tags["gate.approved_by"]) == ("promoted", "ann <b>")
    assert tags["gate.approved_at"] in approve(second, "bob"), "the first person stays on record"
    assert registry.tags(store, MODEL, second)["gate.approved_by"] == "ann <b>"
    assert registry.tags(store, MODEL, 1)["gate.decision"] == "replaced"
    description = store.get_model_version(MODEL, "2").description
    assert "Approved by ann &#60;b&#62;" in description
    assert roll_back() == "version 2 is rolled back: the champion is version 1 again"


def test_without_approval_a_borderline_version_is_refused_and_cannot_be_approved(store: Any, says: Any) -> None:
    says(half)
    run()
    says(like_half)
    assert "version 2 is not promoted" in run()
    with pytest.raises(ConfigError, match="--approve 2: .* does not wait for approval .*last decision: kept"):
        approve(2)
    assert registry.champion(store, MODEL) == 1


def test_what_is_surely_better_or_surely_worse_does_not_wait_if_only_borderline_versions_do(
    store: Any, says: Any
) -> None:
    needed("borderline")
    says(half)
    run()
    says(people)
    assert "version 2 is champion in place of version 1" in run()
    says(half)
    assert "version 3 is not promoted" in run()
    says(lambda example: "the same of all of them")
    assert "version 4 is not promoted" in run()
    says(people, evaluation=evaluated("most_frequent", -0.5, -0.1))
    assert "version 5 is not promoted; the champion is version 2: worse than the naive answers" in run()


def test_with_always_the_first_and_the_better_version_wait_too_and_force_is_a_persons_word(
    store: Any, says: Any
) -> None:
    needed("always")
    first = says(half)
    assert "version 1 waits for approval" in run()
    assert registry.champion(store, MODEL) is None
    assert approve(first) == "version 1 is the first champion, approved by ann"
    second = says(people)
    assert "version 2 waits for approval" in run()
    assert registry.champion(store, MODEL) == first
    says(half)
    assert "version 3 is not promoted" in run()
    assert "version 2 is champion" in run(challenger=second, force=True)
    assert "gate.approved_by" not in registry.tags(store, MODEL, second)


def test_a_version_that_was_compared_with_another_champion_must_be_compared_again(store: Any, says: Any) -> None:
    needed("borderline")
    says(half)
    run()
    waiting = says(like_half)
    run()
    says(people)
    assert "version 3 is champion" in run()
    with pytest.raises(TemporaryError, match="was compared with version 1, and the champion is version 3 now"):
        approve(waiting)
    assert registry.champion(store, MODEL) == 3
    assert "gate.approved_by" not in registry.tags(store, MODEL, waiting)
    assert "version 2 is not promoted" in run(challenger=waiting)


def test_an_approval_that_was_killed_before_the_alias_moved_is_finished_by_the_next(
    store: Any, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("always")
    says(half)
    run()

    def crash(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "make_champion", crash)
        with pytest.raises(KeyboardInterrupt):
            approve(1)
    assert registry.champion(store, MODEL) is None
    assert approve(1, "bob") == "version 1 is the first champion, approved by ann"
    assert registry.champion(store, MODEL) == 1


def test_an_approval_does_not_outlive_a_rollback(store: Any, says: Any) -> None:
    needed("always")
    says(half)
    run()
    approve(1)
    says(people)
    run()
    approve(2)
    roll_back()
    with pytest.raises(ConfigError, match="does not wait for approval"):
        approve(2)
    assert "waits for approval" in run(challenger=2)
    assert "gate.approved_by" not in registry.tags(store, MODEL, 2)
    assert registry.champion(store, MODEL) == 1


def test_of_two_approvals_at_once_one_moves_the_alias_and_both_name_the_same_person(store: Any, says: Any) -> None:
    needed("always")
    says(half)
    run()
    start, said = threading.Barrier(4), []

    def person(number: int) -> None:
        start.wait()
        try:
            said.append(approve(1, f"person {number}"))
        except PipelineError as error:
            said.append(str(error))

    threads = [threading.Thread(target=person, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    who = registry.tags(store, MODEL, 1)["gate.approved_by"]
    assert sorted(f"approved by {who}" in line for line in said) == [True] * 4, said
    assert sum("is the first champion" in line for line in said) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "ann"], "--by: names who approves"),
        (["--approve", "2", "--rollback"], "--rollback: cannot be combined with --approve"),
        (["--approve", "2", "--challenger", "2"], "--approve: cannot be combined with --challenger"),
        (["--approve", "9", "--by", "ann"], "--approve 9: models:/image-captioning has the versions 1"),
        (["--approve", "1", "--by", " "], "--by: found a name of 0 characters"),
    ],
)
def test_a_wrong_approval_is_one_line(
    store: Any, says: Any, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says(half)
    done = CliRunner().invoke(app, ["promote", *words])
    assert done.exit_code == 78
    assert said in done.stderr
