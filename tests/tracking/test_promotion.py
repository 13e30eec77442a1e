"""Champion against challenger on a real registry; what the versions say is given, so the better one is known."""

from __future__ import annotations

import random
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import build
from pipeline.config import params, paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.data.dataset import Example, read_examples
from pipeline.data.fingerprints import PictureFingerprints, fingerprints_of, write_fingerprints
from pipeline.data.near_duplicates import Fingerprints
from pipeline.evaluation.metrics.registry import score_names
from pipeline.models.model_files import ModelFiles
from pipeline.runtime.atomic_files import read_json, write_json
from pipeline.tracking import promotion, registry, runs
from tests.conftest import ROOT, set_params
from tests.engine.recording import RecordingEngine, recording  # noqa: F401

MODEL = "image-captioning"
NOTHING = PictureFingerprints([], Fingerprints.of([]))
Say = Callable[[Example], str]


@pytest.fixture
def store(workspace: Path, mlflow_db: Path, bring_data_set: Callable[..., None]) -> Any:
    """A workspace with a data set of which about half is for testing, and an empty registry."""
    shutil.copy(mlflow_db, workspace)
    bring_data_set(workspace, 120, {"build.test": 0.5})
    set_params(workspace, {"evaluate.max_pictures": 500})
    found = runs.client()
    found.create_registered_model(MODEL)
    return found


@pytest.fixture
def says(store: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Registers a version that says what `say` gives of a test picture, and was trained on `pictures`.

    With `evaluation`, its run has that evaluate.json.
    """
    spoken: dict[int, Say] = {}

    def register(
        say: Say, pictures: PictureFingerprints | None = NOTHING, evaluation: Mapping[str, Any] | None = None
    ) -> int:
        folder = Path.cwd() / "versions" / str(len(spoken) + 1)
        (folder / "artifacts").mkdir(parents=True)
        if pictures is not None:
            write_fingerprints(folder / "artifacts" / registry.TRAINED_ON, pictures)
        run_id = None
        if evaluation is not None:
            with runs.training_run(store, runs.experiment(store, MODEL), f"key {len(spoken)}", {}) as run:
                write_json(Path("evaluate.json"), evaluation)
                run.file(Path("evaluate.json"), again=True)
                run_id = run.id
        number = int(store.create_model_version(MODEL, source=folder.as_uri(), run_id=run_id).version)
        spoken[number] = say
        return number

    def captions(store: Any, params: Any, number: int, test: list[Example]) -> list[str]:
        return [spoken[number](example) for example in test]

    monkeypatch.setattr(promotion, "_captions", captions)
    return register


def run(**options: Any) -> str:
    done = promotion.promote(params.load(), **options)
    assert options.get("dry_run") or done.result == report()
    return done.line


def roll_back(**options: Any) -> str:
    return promotion.roll_back(params.load(), **options)


def people(example: Example) -> str:
    """What people said: as good as it gets."""
    return example.captions[0]


def half(example: Example) -> str:
    """The first half of what people said."""
    words = example.captions[0].split()
    return " ".join(words[: len(words) // 2 + 1])


def report() -> dict[str, Any]:
    return dict(read_json(Path("reports/promote.json")))


def test_the_first_version_is_champion_and_a_better_one_takes_its_place(store: Any, says: Any) -> None:
    first = says(half)
    assert run() == f"version {first} is the first champion: there is no champion yet"
    assert registry.champion(store, MODEL) == first
    assert report()["decision"] == "first"

    second = says(people)
    said = run()
    assert said.startswith(f"version {second} is champion in place of version {first}: +")
    assert registry.champion(store, MODEL) == second
    made = report()
    assert (made["decision"], made["challenger"], made["champion"]) == ("promoted", second, first)
    assert made["metrics"]["challenger"]["CIDEr-D"] > made["metrics"]["champion"]["CIDEr-D"] + 1
    noted = registry.tags(store, MODEL, second)
    assert noted["gate.decision"] == "promoted"
    assert noted[registry.BEFORE] == str(first)
    assert noted["gate.reasons"] == "; ".join(made["reasons"])
    assert registry.tags(store, MODEL, first)["gate.decision"] == "replaced"


def test_versions_are_compared_by_beam_search_if_one_has_no_index(
    store: Any, says: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(Path(), {"evaluate.decoding.method": "consensus"})
    says(half)
    assert run() == "version 1 is the first champion: there is no champion yet"
    line = "promote: version 1 has no index of its training captions; all versions caption by beam search"
    assert line in capsys.readouterr().out.splitlines()


def test_versions_caption_by_the_chosen_engine(
    store: Any, monkeypatch: pytest.MonkeyPatch, recording: RecordingEngine  # noqa: F811
) -> None:  # fmt: skip
    read = params.load()
    demo = ModelFiles(ROOT / "models/git-demo", None, read.evaluate.generation, read.evaluate.decoding)
    monkeypatch.setattr(promotion, "find_captioner", lambda name, params: demo)
    store.create_model_version(MODEL, source=Path.cwd().as_uri())
    test = read_examples(Path("data/dataset/test"))[:6]
    set_params(Path(), {"runtime.caption_batch_size": 4})
    found = []
    for engine in ("local", "ray"):
        set_params(Path(), {"runtime.engine": engine})
        found.append(promotion._captions(store, params.load(), 1, test))
        shutil.rmtree(paths.SAID)  # where captions are kept
    assert found[0] == found[1]
    assert recording.calls == [[4, 2]]


def test_a_worse_one_or_one_as_good_is_not_promoted_and_reasons_are_with_both(store: Any, says: Any) -> None:
    says(people)
    run()
    for worse, outcome in (
        (half, ": worse"),
        (people, ": not surely more"),
        (lambda example: "the same of all of them", ": worse"),
    ):
        number = says(worse)
        assert run().startswith(f"version {number} is not promoted; the champion is version 1: ")
        assert registry.champion(store, MODEL) == 1
        assert report()["decision"] == "kept"
        for version in (1, number):
            assert outcome in registry.tags(store, MODEL, version)["gate.reasons"]
    assert "least_distinct" in " ".join(report()["reasons"])


def evaluated(other: str, low: float, high: float) -> dict[str, Any]:
    """An evaluation in which the model's gain over another system has this interval."""
    gain = {"CIDEr-D": [(low + high) / 2, low, high]}
    return {"model": {"CIDEr-D": 1.0}, other: {"CIDEr-D": 1.0, "model_is_above_by": gain}, "pictures": 60}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("before_finetuning", "worse than before fine-tuning"),
        ("most_frequent", "worse than the naive answers"),
    ],
)
def test_a_version_that_is_worse_than_what_it_had_to_beat_becomes_champion_only_by_force(
    store: Any, says: Any, other: str, words: str
) -> None:
    first = says(people, evaluation=evaluated(other, -0.5, -0.1))
    said = run()
    assert said.startswith(f"version {first} is not promoted; the champion is none: {words} (-0.300 CIDEr-D")
    assert registry.champion(store, MODEL) is None
    assert report()["decision"] == "kept"
    description = store.get_model_version(MODEL, str(first)).description
    assert "**Refused; there is no champion**" in description
    assert f"Reasons: {words}" in description

    assert run(force=True, dry_run=True).startswith(f"version {first} would be the first champion: forced")
    assert registry.champion(store, MODEL) is None
    assert run(force=True).startswith(f"version {first} is the first champion: forced with --force; {words}")
    assert registry.champion(store, MODEL) == first
    description = store.get_model_version(MODEL, str(first)).description
    assert "**Promoted as the first champion**" in description
    assert "Refused" not in description


def test_a_better_version_is_refused_too_if_it_is_worse_than_the_naive_answers(store: Any, says: Any) -> None:
    says(half, evaluation=evaluated("most_frequent", 0.1, 0.5))
    run()
    says(people, evaluation=evaluated("most_frequent", -0.5, -0.1))
    assert "version 2 is not promoted; the champion is version 1: worse than the naive answers" in run()
    assert run(force=True).startswith("version 2 is champion in place of version 1: forced with --force")
    assert "**Replaced by version 2**" in store.get_model_version(MODEL, "1").description
    roll_back()
    assert "**Rolled back**" in store.get_model_version(MODEL, "2").description


def test_a_version_that_is_not_clearly_better_may_become_champion(store: Any, says: Any, capsys: Any) -> None:
    says(half, evaluation=evaluated("most_frequent", -0.1, 0.5))
    assert run() == "version 1 is the first champion: there is no champion yet"
    assert "no comparison" not in capsys.readouterr().out


def test_the_metric_of_params_decides_what_is_worse(store: Any, says: Any) -> None:
    set_params(Path.cwd(), {"promote.metric": "ROUGE-L"})
    evaluation = evaluated("most_frequent", 0.1, 0.5)
    evaluation["most_frequent"] |= {"ROUGE-L": 0.5}
    evaluation["most_frequent"]["model_is_above_by"]["ROUGE-L"] = [-0.2, -0.3, -0.1]
    says(half, evaluation=evaluation)
    assert "worse than the naive answers (-0.200 ROUGE-L" in run()


@pytest.mark.parametrize("evaluation", [None, {}, {"model": {"CIDEr-D": 1.0}, "most_frequent": {"CIDEr-D": 2.0}}])
def test_an_old_version_without_comparisons_is_judged_as_before_with_a_line(
    store: Any, says: Any, capsys: Any, evaluation: dict[str, Any] | None
) -> None:
    says(half, evaluation=evaluation)
    assert run() == "version 1 is the first champion: there is no champion yet"
    assert "promote: version 1 has no comparison with naive answers in its run" in capsys.readouterr().out


def test_a_damaged_report_does_not_open_the_gate(store: Any, says: Any) -> None:
    number = says(half, evaluation={})
    run_id = store.get_model_version(MODEL, str(number)).run_id
    store.log_text(run_id, '{"model": ', "evaluate.json")
    with pytest.raises(DataError, match=r"models:/image-captioning/1: evaluate\.json in its run is damaged"):
        run()
    assert registry.champion(store, MODEL) is None


def test_running_it_again_changes_nothing(store: Any, says: Any) -> None:
    says(half)
    run()
    assert run() == "version 1 is not promoted; the champion is version 1: it is already champion"


def test_a_dry_run_says_the_same_and_changes_nothing(store: Any, says: Any) -> None:
    says(half)
    assert run(dry_run=True) == "version 1 would be the first champion: there is no champion yet"
    assert registry.champion(store, MODEL) is None
    assert registry.tags(store, MODEL, 1) == {}
    assert not Path("reports/promote.json").exists()


def test_the_alias_moves_last(store: Any, says: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    says(half)
    run()
    says(people)

    def crash(*args: Any) -> None:
        assert registry.tags(store, MODEL, 2)["gate.decision"] == "promoted"
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "make_champion", crash)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert registry.champion(store, MODEL) == 1
    run()
    assert registry.champion(store, MODEL) == 2


def test_roll_back_returns_to_the_champion_before_and_the_one_taken_back_stays_out(store: Any, says: Any) -> None:
    says(half)
    run()
    says(people)
    run()
    assert roll_back(dry_run=True).startswith("version 2 would be rolled back")
    assert registry.champion(store, MODEL) == 2
    assert roll_back() == "version 2 is rolled back: the champion is version 1 again"
    assert registry.champion(store, MODEL) == 1
    assert "it was rolled back; compare it again with `--challenger 2`" in run()
    assert registry.champion(store, MODEL) == 1
    assert "it was rolled back" in run(challenger=2, unless_rolled_back=True)
    assert "version 2 is champion in place of version 1" in run(challenger=2)
    assert registry.ROLLED_BACK not in registry.tags(store, MODEL, 2)
    roll_back()
    with pytest.raises(ConfigError, match="is the first champion"):
        roll_back()
    run(challenger=2)
    store.delete_model_version(MODEL, "1")
    with pytest.raises(ConfigError, match="models:/image-captioning/1: the previous champion was deleted"):
        roll_back()
    assert registry.ROLLED_BACK not in registry.tags(store, MODEL, 2)


def test_pictures_that_either_was_trained_on_or_ones_nearly_the_same_do_not_count(store: Any, says: Any) -> None:
    """The challenger knows by heart what it was trained on, and nothing else."""
    test = read_examples(Path("data/dataset/test"))
    known = fingerprints_of(test[:30])
    exactly, likeness = known.select(known.sha256s[:15]), known.select(known.sha256s[15:])
    # Saved anew, a picture has another hash and nearly the same print.
    again = PictureFingerprints(
        [f"{random.Random(sha).getrandbits(256):064x}" for sha in likeness.sha256s], likeness.fingerprints
    )
    of_both = PictureFingerprints(
        exactly.sha256s + again.sha256s,
        Fingerprints.of([(int(c), t.tobytes()) for p in (exactly, again)
                   for c, t in zip(p.fingerprints.hashes, p.fingerprints.thumbnails, strict=True)]),
    )  # fmt: skip
    by_heart = {example.file_name for example in test[:30]}

    def challenger(example: Example) -> str:
        return people(example) if example.file_name in by_heart else half(example)

    says(half)
    run()
    says(challenger, of_both)
    assert "not surely more" in run()
    left = report()["reasons"][-1]
    assert f"on {len(test) - 30} test pictures" in left
    says(challenger, NOTHING)
    assert "is champion in place of version 1" in run()


def test_a_version_that_does_not_tell_what_it_learned_is_compared_on_all(store: Any, says: Any, capsys: Any) -> None:
    says(half)
    run()
    says(people, None)
    run()
    assert "version 2 has no list of its training pictures" in capsys.readouterr().out
    assert f"on {len(read_examples(Path('data/dataset/test')))} test pictures" in report()["reasons"][-1]


def test_where_all_test_pictures_were_trained_on_nothing_is_decided(store: Any, says: Any) -> None:
    says(half, fingerprints_of(read_examples(Path("data/dataset/test"))))
    with pytest.raises(DataError, match="a version was trained on every test picture"):
        run()


def test_what_is_not_there_is_told(store: Any, says: Any) -> None:
    with pytest.raises(ConfigError, match="has no version in MLflow"):
        run()
    with pytest.raises(ConfigError, match="has no version"):
        roll_back()
    says(half)
    with pytest.raises(ConfigError, match="has no champion"):
        roll_back()
    with pytest.raises(ConfigError, match="--challenger 7: models:/image-captioning has the versions 1"):
        run(challenger=7)
    set_params(Path.cwd(), {"build.test": 0.0})
    build.run(params.load(), Namespace())
    with pytest.raises(ConfigError, match=r"build\.test: is 0"):
        run()
    store.set_registered_model_alias(MODEL, "champion", 1)
    shutil.rmtree("data/dataset/test")
    with pytest.raises(DataError, match="data/dataset/test: not found; run `dvc repro build`"):
        run()


@pytest.mark.parametrize("metric", ["CIDEr-D", "ROUGE-L", "BLEU-4"])
def test_it_goes_by_the_metric_of_params(store: Any, says: Any, metric: str) -> None:
    set_params(Path.cwd(), {"promote.metric": metric})
    says(half)
    run()
    says(people)
    assert f" {metric}, 95% interval" in run()
    assert set(report()["metrics"]["champion"]) == {*score_names(), "distinct_captions"}


def test_what_was_promoted_by_a_run_that_could_not_tell_is_told_as_promoted_and_older_ones_are_not(
    store: Any, says: Any
) -> None:
    began = time.time()
    first = says(half)
    run()
    assert run(since=began, challenger=first) == f"version {first} is the first champion: there is no champion yet"
    second = says(people)
    said = run()
    told = run(since=began, challenger=second)
    assert told == said.splitlines()[-1]
    assert (report()["decision"], report()["challenger"], report()["champion"]) == ("promoted", second, first)
    assert "it is already champion" in run(since=time.time() + 2, challenger=second)
    assert "it is already champion" in run(challenger=second)


def test_a_champion_that_changes_while_versions_are_compared_is_not_overwritten(
    store: Any, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = says(half)
    run()
    second = says(half)
    third = says(people)
    compare = promotion._compare

    def meanwhile(*words: Any) -> Any:
        found = compare(*words)
        registry.make_champion(store, MODEL, second)
        return found

    monkeypatch.setattr(promotion, "_compare", meanwhile)
    with pytest.raises(TemporaryError, match=f"became version {second} while {third} was compared with {first}"):
        run()
    assert registry.champion(store, MODEL) == second
    assert "gate.decision" not in registry.tags(store, MODEL, third)
