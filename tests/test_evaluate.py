from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import evaluate, finetune
from pipeline.config import params
from pipeline.config.errors import ConfigError
from pipeline.data.dataset import Example, fair_share, read_examples
from pipeline.evaluation.named_words import NamedWords
from pipeline.evaluation.ptb.tokens import TOKENIZER
from pipeline.models.neighbours import read_neighbours
from pipeline.models.weights import weights_hash
from pipeline.runtime.atomic_files import read_json, sha256_of
from pipeline.tracking.captioners import load_captioner
from tests.conftest import run, set_params
from tests.engine.recording import RecordingEngine, recording  # noqa: F401
from tests.evaluation.test_clip_score import clip  # noqa: F401


def run_evaluate() -> dict:
    evaluate.run(params.load(), Namespace())
    return read_json(Path("reports/evaluate.json"))


@pytest.fixture
def trained(trained_once: Path, workspace: Path) -> Path:
    """A workspace with a trained model, the current folder while the test runs."""
    shutil.copytree(trained_once, workspace, dirs_exist_ok=True)
    return workspace


def captions() -> list[dict]:
    return [json.loads(line) for line in Path("reports/evaluate/captions.jsonl").read_text().splitlines()]


def test_the_model_stands_beside_three_naive_answers(trained: Path) -> None:
    report = run_evaluate()
    systems = [name for name, value in report.items() if isinstance(value, dict)]
    assert systems == ["model", "nearest_consensus", "nearest_picture", "most_frequent"]
    test = fair_share(read_examples(Path("data/dataset/test")), 10)
    assert report["pictures"] == len(test) == len(captions())
    assert [line["references"] for line in captions()] == [example.captions for example in test]
    train = {c for example in read_examples(Path("data/dataset/train")) for c in example.captions}
    for system in ("nearest_consensus", "nearest_picture"):
        assert {line["captions"][system] for line in captions()} <= train
    assert len({line["captions"]["most_frequent"] for line in captions()}) == 1
    assert Path("reports/evaluate/contact_sheet.png").is_file()
    assert report["tokenizer"] == TOKENIZER
    assert f"Tokenizer: {TOKENIZER}." in Path("reports/evaluate/gallery.html").read_text()


def test_dvc_metrics_shows_at_most_eight_values_and_the_report_has_all(trained: Path) -> None:
    report, shown = run_evaluate(), read_json(Path("reports/evaluate.metrics.json"))
    assert 0 < len(shown) <= 8
    for name in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        assert shown[name] == report["model"][name]
    assert [shown["CIDEr-D_low"], shown["CIDEr-D_high"]] == report["model"]["intervals_95"]["CIDEr-D"]
    for other in ("nearest_picture", "most_frequent"):
        assert shown[other] == report[other]["CIDEr-D"]


def test_the_last_line_says_whether_the_model_beats_the_naive_answers(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions are given, so that the result is known."""
    of_systems = evaluate._captions_of_systems

    def last_line(say: Callable[[Example], str]) -> str:
        def captions(test: list[Example], settings: Any, index: Path) -> evaluate.Answers:
            said = [say(example) for example in test]
            people = [example.captions[0] for example in test]
            found = of_systems(test, settings, index)
            return replace(found, captions={**found.captions, "model": said, "before_finetuning": people})

        monkeypatch.setattr(evaluate, "_captions_of_systems", captions)
        return evaluate.run(params.load(), Namespace())

    set_params(trained, {"evaluate.max_pictures": 100})
    assert ": worse than before fine-tuning, worse than the naive answers; all scores" in last_line(
        lambda e: "nonsense"
    )
    line = last_line(lambda example: example.captions[0])
    assert ": not clearly better than before fine-tuning, better than the naive answers; all scores" in line


def test_each_system_has_scores_with_intervals_and_what_overlap_does_not_tell(trained: Path) -> None:
    report = run_evaluate()
    assert report["reference_words"] > 3
    for system in ("model", "nearest_consensus", "nearest_picture", "most_frequent"):
        found = report[system]
        for name, (low, high) in found["intervals_95"].items():
            assert low - 1e-4 <= found[name] <= high + 1e-4
        assert found["words"] >= 0
    assert report["most_frequent"]["distinct_captions"] == 1 / report["pictures"]
    assert report["nearest_picture"]["copied"] == report["most_frequent"]["copied"] == 1
    assert report["nearest_picture"]["unknown_words"] == 0


def test_what_captions_name_is_reported_and_shown_in_the_gallery(trained: Path) -> None:
    set_params(trained, {"evaluate.named_words": {"hue": ["red", "blue", "green"]}})
    report = run_evaluate()
    page = Path("reports/evaluate/gallery.html").read_text()
    assert "<th>hue" in page
    assert "CLIPScore" not in page
    references = [line["references"] for line in captions()]
    for system in ("model", "nearest_consensus", "nearest_picture", "most_frequent"):
        said = [line["captions"][system] for line in captions()]
        assert report[system]["named"] == NamedWords({"hue": ["red", "blue", "green"]}).figures(said, references)
        assert 0 <= report[system]["unfinished"] <= 1
    assert report["most_frequent"]["loops"] in (0, 1)


def test_a_clip_model_scores_every_system(trained: Path, clip: Path) -> None:  # noqa: F811
    set_params(trained, {"evaluate.clip_score.checkpoint": str(clip)})
    report = run_evaluate()
    assert "<th>RefCLIPScore" in Path("reports/evaluate/gallery.html").read_text()
    for system in ("model", "nearest_consensus", "nearest_picture", "most_frequent"):
        assert 0 <= report[system]["CLIPScore"] <= 2.5
        assert 0 <= report[system]["RefCLIPScore"] <= 2.5


def test_how_far_the_model_is_above_each_other_answer_is_told_with_an_interval(trained: Path) -> None:
    report = run_evaluate()
    for other in ("nearest_consensus", "nearest_picture", "most_frequent"):
        for name, (value, low, high) in report[other]["model_is_above_by"].items():
            assert value == pytest.approx(report["model"][name] - report[other][name], abs=1e-4)
            assert low <= value + 1e-4
            assert value - 1e-4 <= high
    assert "model_is_above_by" not in report["model"]


def test_captions_are_written_as_coco_has_them_and_score_the_same(trained: Path) -> None:
    report = run_evaluate()
    folder = Path("reports/evaluate")
    files = [folder / "coco_results.json", folder / "coco_annotations.json"]
    done = run(
        trained, sys.executable, "-m", "pipeline.cli", "score", *map(str, files), "--no-java", "--json", "again.json"
    )
    assert done.returncode == 0, done.stderr
    scores = read_json(Path("again.json"))["scores"]
    assert scores == {name: report["model"][name] for name in scores}


def test_where_training_started_from_a_checkpoint_it_is_evaluated_too(trained: Path) -> None:
    run_evaluate()
    alone = [line["captions"]["model"] for line in captions()]
    shutil.copytree("models/finetune", "base")
    set_params(trained, {"finetune.checkpoint": "base", "finetune.epochs": 8, "finetune.learning_rate": 0.01})
    finetune.run(params.load(), Namespace())
    report = run_evaluate()
    assert [line["captions"]["before_finetuning"] for line in captions()] == alone
    assert report["model"]["BLEU-1"] > report["before_finetuning"]["BLEU-1"]
    assert len(report["restyled"]["model_is_above_by"]["CIDEr-D"]) == 3
    assert "restyled" not in read_json(Path("reports/evaluate.metrics.json"))
    index = sha256_of(Path("models/neighbours"))
    set_params(trained, {"finetune.freeze": "image_encoder"})  # whose features are kept between runs
    for _ in range(2):
        run_evaluate()
        assert sha256_of(Path("models/neighbours")) == index
    assert list(Path(".work/features").glob("*.rows"))


def test_the_same_model_gives_the_same_bytes(trained: Path) -> None:
    run_evaluate()
    first = sha256_of(Path("reports/evaluate"), Path("reports/evaluate.json"))
    run_evaluate()
    assert sha256_of(Path("reports/evaluate"), Path("reports/evaluate.json")) == first


def test_the_batch_size_changes_no_caption(trained: Path) -> None:
    run_evaluate()
    first = captions()
    set_params(trained, {"runtime.caption_batch_size": 3})
    run_evaluate()
    assert captions() == first


def test_captions_chosen_by_consensus_stand_beside_those_of_beam_search(trained: Path) -> None:
    run_evaluate()
    by_beam_search = [line["captions"]["model"] for line in captions()]
    set_params(trained, {"evaluate.decoding.method": "consensus", "evaluate.decoding.samples": 8})
    assert "of its captions equal a training caption, " in evaluate.run(params.load(), Namespace())
    report = read_json(Path("reports/evaluate.json"))
    assert [line["captions"]["beam_search"] for line in captions()] == by_beam_search
    assert [line["captions"]["model"] for line in captions()] != by_beam_search
    for system in ("model", "beam_search"):
        assert 0 <= report[system]["copied"] <= 1
    first = captions()
    set_params(trained, {"runtime.caption_batch_size": 3})
    run_evaluate()
    assert captions() == first
    set_params(trained, {"evaluate.decoding.seed": 1})
    run_evaluate()
    assert captions() != first
    set_params(trained, {"evaluate.decoding.samples": 0})
    run_evaluate()
    of_beams = captions()
    set_params(trained, {"evaluate.decoding.seed": 2})
    run_evaluate()
    assert captions() == of_beams, "nothing was sampled"


def test_every_model_captions_by_the_chosen_engine(trained: Path, recording: RecordingEngine) -> None:  # noqa: F811
    set_params(trained, {"evaluate.decoding.method": "both", "runtime.caption_batch_size": 4})
    run_evaluate()
    local = captions()
    assert recording.calls == []
    set_params(trained, {"runtime.engine": "ray"})
    run_evaluate()
    assert captions() == local
    assert recording.calls == [[4, 4, 2]] * 2, "by consensus and by beam search"


def test_the_index_has_the_captions_of_the_training_pictures_and_none_of_the_pictures(trained: Path) -> None:
    run_evaluate()
    train = read_examples(Path("data/dataset/train"))
    index = read_neighbours(Path("models/neighbours"), weights_hash(Path("models/finetune")))
    assert list(zip(index.sha256s, index.captions, strict=True)) == [(e.sha256, e.captions) for e in train]
    files = {file.name for file in Path("models/neighbours").iterdir()}
    assert files == {"captions.jsonl", "checksums.json", "features.safetensors", "neighbours.json"}


def test_an_index_of_another_model_is_refused(trained: Path) -> None:
    run_evaluate()
    set_params(trained, {"finetune.seed": 3})
    finetune.run(params.load(), Namespace())
    set_params(trained, {"evaluate.decoding.method": "mbr"})
    with pytest.raises(ConfigError, match=r"models/neighbours: belongs to another checkpoint; run `dvc repro`"):
        load_captioner("models/finetune", params.load())


def test_no_test_pictures_is_told_by_its_param(trained: Path) -> None:
    from pipeline import build

    set_params(trained, {"build.test": 0.0})
    build.run(params.load(), Namespace())
    with pytest.raises(ConfigError, match=r"build\.test: is 0"):
        run_evaluate()
