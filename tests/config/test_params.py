from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import params
from pipeline.config.errors import ConfigError
from tests.conftest import ROOT, set_params


def test_the_shipped_params_are_valid() -> None:
    shipped = params.load(ROOT / "params.yaml")
    assert shipped.ingest.sources == ["sample"]
    assert shipped.finetune.learning_rate == "auto"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("finetune.epochs", 0, ["finetune.epochs", "found 0", "greater than or equal to 1"]),
        ("finetune.epochs", "twenty", ["finetune.epochs", "'twenty'", "integer"]),
        ("finetune.epochs", True, ["finetune.epochs", "found True"]),
        ("finetune.learn_rate", 0.1, ["finetune.learn_rate", "unknown key"]),
        ("finetune.learning_rate", float("nan"), ["finetune.learning_rate", "finite"]),
        ("finetune.checkpoint", "microsoft/git-base", ["revision", "40-digit commit"]),
        ("finetune.checkpoint", "/no/such folder", ["neither", "nor a folder"]),
        ("finetune.captions_per_picture", 0, ["finetune.captions_per_picture", "found 0", "'all'"]),
        ("finetune.freeze", "image_encoder", ["finetune", "random weights of `scratch`", "none"]),
        ("finetune.precision", "float64", ["finetune.precision", "'bfloat16'"]),
        ("evaluate.named_words", {"a": ["red", ["blue", "Red "]]}, ["evaluate.named_words", "'Red ' twice", "in a"]),
        ("evaluate.named_words", {"a": [" "]}, ["evaluate.named_words.a.0", "found ' '"]),
        ("evaluate.clip_score.checkpoint", "openai/clip", ["evaluate.clip_score", "revision", "40-digit commit"]),
        ("register.training_captions", "no", ["register.training_captions", "'no'"]),
        ("build.test", 0.95, ["build", "nothing to train on"]),
        ("ingest.max_pixels", 10**9, ["ingest.max_pixels", "less than or equal to 500000000"]),
        ("runtime.memory_gb", -1, ["runtime.memory_gb", "greater than or equal to 0"]),
        ("ingest.sources", [], ["ingest.sources", "at least 1 item"]),
        ("ingest.sources", ["../outside"], ["ingest.sources.0", "'../outside'"]),
        ("ingest.sources", ["a", "a"], ["ingest", "twice"]),
        ("finetune.scratch.heads", 5, ["finetune.scratch", "multiple of `heads`"]),
        ("extra", {}, ["extra", "unknown key"]),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_its_key_and_the_mend(
    workspace: Path, key: str, value: Any, words: list[str]
) -> None:
    set_params(workspace, {key: value})
    with pytest.raises(ConfigError) as caught:
        params.load()
    assert "\n" not in str(caught.value)
    for word in ["params.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("finetune.state_minutes", 10, "runtime.state_minutes"),
        ("finetune.feature_cache_gb", 20, "runtime.feature_cache_gb"),
        ("finetune.launch", {"processes": 1}, "runtime.launch"),
        ("evaluate.batch_size", 32, "runtime.caption_batch_size"),
    ],
)
def test_a_key_of_an_older_version_says_where_it_went(workspace: Path, old: str, value: Any, new: str) -> None:
    set_params(workspace, {old: value})
    with pytest.raises(ConfigError, match=f"{old}: moved to {new}; move the value there"):
        params.load()


def test_a_missing_key_is_named(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("  seed: 17\n", ""))
    with pytest.raises(ConfigError, match=r"finetune\.seed: is missing"):
        params.load()


def test_no_yaml_and_no_file_are_told(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        params.load()
    (workspace / "params.yaml").unlink()
    with pytest.raises(ConfigError, match="not found"):
        params.load()


def bomb() -> str:
    """Nine levels of ten aliases each: a billion values in 600 bytes."""
    levels = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for above, name in itertools.pairwise("abcdefghi"):
        levels.append(f"{name}: &{name} [{', '.join([f'*{above}'] * 10)}]")
    return "\n".join(levels)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ingest: " + "[" * 10_000, "line 1: is nested more than 32 deep"),
        ("\n".join(" " * level + "a:" for level in range(10_000)), "is larger than 256 kB"),
        ("\n".join(" " * level + "a:" for level in range(700)), "line 33: is nested more than 32 deep"),
        ("finetune:\n  seed: " + "9" * 5000, "is not valid YAML: Exceeds the limit"),
        (bomb(), "line 4: the file has more than 10,000 values, aliases included"),
        ("a: &a [*a]", "unknown key"),
        ("a: &a\n  b: *a", "unknown key"),
        ("a: 2026-02-30", "is not valid YAML"),
        ("a: [" + "x, " * 20_000 + "]", "line 1: the file has more than 10,000 values"),
        ("\n".join(f"key{number}: 1" for number in range(4000)), "more wrong values"),
    ],
)
def test_a_hostile_file_is_refused_in_one_short_line(workspace: Path, text: str, words: str) -> None:
    (workspace / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        params.load()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_a_long_value_is_shortened_in_the_message(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("  seed: 17\n", f"  seed: {'9' * 4000}\n"))
    with pytest.raises(ConfigError, match=r"finetune\.seed: found 9{100} \.\.\.; input should be less than"):
        params.load()


def test_aliases_are_allowed(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    assert "  validation: 0.1\n" in text
    text = text.replace("  validation: 0.1\n", "  validation: &fraction 0.1\n").replace(
        "  test: 0.15", "  test: *fraction"
    )
    (workspace / "params.yaml").write_text(text)
    assert params.load().build.test == 0.1


def test_a_folder_in_place_of_the_file_is_reported(workspace: Path) -> None:
    (workspace / "params.yaml").unlink()
    (workspace / "params.yaml").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        params.load()


def test_a_key_that_stands_twice_is_refused(workspace: Path) -> None:
    with (workspace / "params.yaml").open("a") as file:
        file.write("\nbuild:\n  test: 0.1\n")
    with pytest.raises(ConfigError, match="duplicate key"):
        params.load()


def test_a_hub_name_with_a_commit_is_accepted(workspace: Path) -> None:
    set_params(workspace, {"finetune.checkpoint": "microsoft/git-base", "finetune.revision": "0" * 40})
    assert params.load().finetune.revision == "0" * 40


def test_captions_that_are_kept_out_of_a_version_cannot_be_compared_with(workspace: Path) -> None:
    set_params(workspace, {"register.training_captions": False})
    params.load()
    set_params(workspace, {"evaluate.decoding.method": "mbr"})
    with pytest.raises(ConfigError, match=r"params.yaml: evaluate.decoding.method: found mbr, .* set one to beam"):
        params.load()


def test_a_method_that_compares_needs_several_candidates(workspace: Path) -> None:
    set_params(workspace, {"evaluate.generation.beams": 1, "evaluate.decoding.samples": 0})
    params.load()
    set_params(workspace, {"evaluate.decoding.method": "both"})
    with pytest.raises(ConfigError, match=r"params.yaml: evaluate: .*leaves a single caption; raise one of them"):
        params.load()
