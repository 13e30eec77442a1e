"""The command that scores captions from files, on its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.score import score_files
from pipeline.config.errors import ConfigError, DataError
from pipeline.evaluation.caption_tokenizer import CHARACTERS
from pipeline.evaluation.metrics.registry import METRICS, Metric, score_names
from pipeline.evaluation.metrics.scoring import corpus_scores
from pipeline.evaluation.ptb.tokens import TOKENIZER, ptb_tokenize
from pipeline.runtime.atomic_files import read_json, read_json_lines
from tests.conftest import ROOT, SHARED, run

SAID = {1: "a red dog runs", 2: "two cats", 3: "the old boat ⛵ #sea"}
PEOPLE = {1: ["A red dog is running.", "dog!"], 2: ["Two blue cats sit here"], 3: ["an old boat ⛵ ☀️ #sea #sun"]}


def lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Predictions and references in an otherwise empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return (
        lines(tmp_path / "predictions.jsonl", [{"image_id": i, "caption": c} for i, c in SAID.items()]),
        lines(tmp_path / "references.jsonl", [{"image_id": i, "references": c} for i, c in PEOPLE.items()]),
    )


def command(*words: object, java: bool = False) -> str:
    """What the command returns, in this process."""
    files: list[Path] = []
    options: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name = {"--json": "json_path", "--each": "each_path", "--system": "system"}.get(str(word))
        if name:
            value = next(rest)
            options[name] = value if name == "system" else Path(str(value))
        else:
            files.append(Path(str(word)))
    return score_files(*files, **options, with_java=java)


def report(*words: object) -> dict:
    command(*words, "--json", "out.json")
    return read_json(Path("out.json"))


def expected() -> dict[str, float]:
    said = [ptb_tokenize(caption) for caption in SAID.values()]
    return corpus_scores(said, [[ptb_tokenize(caption) for caption in captions] for captions in PEOPLE.values()])


def test_it_runs_in_any_folder_and_prints_a_table(files: tuple[Path, Path]) -> None:
    done = run(
        files[0].parent,
        sys.executable,
        "-m",
        "pipeline.cli",
        "score",
        *map(str, files),
        "--no-java",
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stderr
    assert "3 pictures, 4 references" in done.stdout
    assert TOKENIZER in done.stdout
    for name, value in expected().items():
        assert f"{name:<18}{value:7.3f}" in done.stdout
    assert "METEOR            not computed: left out by --no-java" in done.stdout
    assert "warning: 3 pictures are too few" in done.stdout
    assert done.stdout.splitlines()[-1] == f"score: CIDEr-D {expected()['CIDEr-D']:.3f} on 3 pictures"
    assert {path.name for path in files[0].parent.iterdir()} == {"predictions.jsonl", "references.jsonl"}


def test_a_fault_is_one_line_and_65(files: tuple[Path, Path]) -> None:
    with files[0].open("a") as file:
        file.write('{"image_id": 9}\n')
    done = run(files[0].parent, sys.executable, "-m", "pipeline.cli", "score", *map(str, files), PYTHONPATH=str(ROOT))
    assert done.returncode == 65
    assert done.stdout == ""
    assert done.stderr.startswith(f"score: {files[0]}: line 4: found the keys `image_id`; add one of")
    assert done.stderr.count("\n") == 1


def test_the_report_has_scores_intervals_and_what_overlap_does_not_tell(files: tuple[Path, Path]) -> None:
    found = report(*files)
    assert found["scores"] == expected()
    assert set(found["intervals_95"]) == set(score_names())
    assert all(low <= found["scores"][name] <= high for name, (low, high) in found["intervals_95"].items())
    assert (found["pictures"], found["references"], found["tokenizer"]) == (3, 4, TOKENIZER)
    assert found["beyond_overlap"]["emoji_recall"] == found["beyond_overlap"]["hashtag_recall"] == 0.5
    assert found["beyond_overlap"]["distinct_captions"] == 1
    assert set(found["not_computed"]) == {"METEOR", "SPICE"}


def test_near_identical_chinese_captions_are_scored_by_characters(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines(files[0], [{"image_id": i, "caption": c} for i, c in enumerate(["一只狗在草地上跑", "两个孩子在玩沙子"])])
    lines(
        files[1], [{"image_id": i, "references": [c]} for i, c in enumerate(["一只狗在草地上走", "两个孩子在玩沙子"])]
    )
    found = report(*files)
    assert found["tokenizer"] == CHARACTERS.name
    assert found["scores"]["BLEU-4"] > 0.8
    assert 5 < found["scores"]["CIDEr-D"] < 10
    assert found["beyond_overlap"]["words"] == found["beyond_overlap"]["reference_words"] == 8
    assert found["not_computed"] == dict.fromkeys(("METEOR", "SPICE"), "needs captions in English")
    assert f"words: {CHARACTERS.name}" in capsys.readouterr().out


def test_the_same_files_give_the_same_report(files: tuple[Path, Path]) -> None:
    assert report(*files) == report(*files)


def test_each_pictures_scores_can_be_written(files: tuple[Path, Path]) -> None:
    assert command(*files, "--each", "deep/each.jsonl").endswith("written to deep/each.jsonl")
    each = list(read_json_lines(Path("deep/each.jsonl")))
    assert [line["id"] for line in each] == [1, 2, 3]
    assert sum(line["CIDEr-D"] for line in each) / 3 == pytest.approx(expected()["CIDEr-D"])


def test_cocos_own_formats_are_read_as_they_are(files: tuple[Path, Path]) -> None:
    results = [{"image_id": i, "caption": caption} for i, caption in SAID.items()]
    annotations = [{"image_id": i, "id": 70 + i, "caption": c} for i, captions in PEOPLE.items() for c in captions]
    more = [{"image_id": 4, "id": 99, "caption": "nobody asked for it"}]
    Path("results.json").write_text(json.dumps(results, indent=1))
    Path("annotations.json").write_text(json.dumps({"images": [], "annotations": annotations + more}))
    found = report("results.json", "annotations.json")
    assert found["scores"] == expected()
    assert "1 pictures with references have no prediction and are left out" in found["warnings"]


@pytest.mark.real
def test_coco_captions_published_scores_are_met_from_its_own_results_file(tmp_path: Path) -> None:
    folder = SHARED / "metric_oracle" / "coco_val2014_fakecap"
    people = json.loads((folder / "gts.json").read_text())
    references = lines(tmp_path / "references.jsonl", [{"id": i, "captions": c} for i, c in people.items()])
    out = tmp_path / "out.json"
    command(folder / "captions_val2014_fakecap_results.json", references, "--json", out)
    found, published = (json.loads(path.read_text()) for path in (out, folder / "expected_scores.json"))
    for name, theirs in [
        *((f"BLEU-{n}", f"Bleu_{n}") for n in (1, 2, 3, 4)),
        ("ROUGE-L", "ROUGE_L"),
        ("CIDEr-D", "CIDEr"),
    ]:
        assert round(found["scores"][name], 3) == published["published"][theirs]


@pytest.mark.java
@pytest.mark.real
def test_meteor_is_the_published_one_where_java_is_there(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    folder = SHARED / "metric_oracle" / "nlg_eval_tiny"
    said, *people = ((folder / name).read_text().splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt"))
    both = [{"id": i, "caption": c, "references": [p[i] for p in people]} for i, c in enumerate(said)]
    out = tmp_path / "out.json"
    command(lines(tmp_path / "both.jsonl", both), "--json", out, java=True)
    published = json.loads((folder / "expected_scores.json").read_text())["files_hyp_ref1_ref2"]
    assert round(read_json(out)["scores"]["METEOR"], 6) == published["METEOR"]


@pytest.mark.java
def test_meteor_takes_captions_without_words(files: tuple[Path, Path]) -> None:
    pytest.importorskip("pycocoevalcap")
    lines(
        files[0],
        [{"image_id": 1, "caption": ""}, {"image_id": 2, "caption": "🐕"}, {"image_id": 3, "caption": "a ||| b"}],
    )
    command(*files, "--json", "out.json", java=True)
    assert 0 <= read_json(Path("out.json"))["scores"]["METEOR"] <= 1


def test_meteor_and_spice_are_not_computed_without_their_package(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command(*files, java=True)
    assert capsys.readouterr().out.count("not computed: needs pycocoevalcap; install it with") == 2


def test_meteor_and_spice_are_not_computed_without_java_or_models(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from importlib.machinery import ModuleSpec

    spec = ModuleSpec("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.setattr("shutil.which", lambda name: None)
    command(*files, java=True)
    assert capsys.readouterr().out.count("not computed: needs Java") == 2
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/java")
    monkeypatch.setattr("pipeline.commands.java_metrics._computed", lambda name, people, said: float("no number"))
    command(*files, java=True)
    out = capsys.readouterr().out
    assert "METEOR            not computed: pycocoevalcap failed: could not convert string to float" in out
    assert "SPICE             not computed: needs language models of 384 MB" in out


def test_our_own_captions_of_several_systems_are_read(files: tuple[Path, Path]) -> None:
    own = [
        {"file_name": f"{i}.jpg", "references": PEOPLE[i], "captions": {"model": SAID[i], "most_frequent": "a dog"}}
        for i in SAID
    ]
    path = lines(Path("captions.jsonl"), own)
    assert report(path, "--system", "model")["scores"] == expected()
    assert report(path, "--system", "most_frequent")["scores"] != expected()
    with pytest.raises(DataError, match="line 1: has captions of `model`, `most_frequent`; choose one with --system"):
        command(path)
    with pytest.raises(DataError, match="--system x is not among them"):
        command(path, "--system", "x")


def test_of_several_captions_the_first_is_scored_and_their_diversity_told(files: tuple[Path, Path]) -> None:
    lines(files[0], [{"id": i, "captions": [caption, f"{caption} here", "x"]} for i, caption in SAID.items()])
    found = report(*files)
    assert found["scores"] == expected()
    beyond = found["beyond_overlap"]
    assert beyond["best_of CIDEr-D"] >= found["scores"]["CIDEr-D"]
    assert 0 < beyond["self-CIDEr"] < 1
    assert 0 <= beyond["mBLEU"] < 1


def test_several_lines_of_a_picture_are_several_references_and_ids_may_be_text(files: tuple[Path, Path]) -> None:
    lines(files[1], [{"id": str(i), "text": caption} for i, captions in PEOPLE.items() for caption in captions])
    assert report(*files)["scores"] == expected()


@pytest.mark.parametrize(
    "separator", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_no_line_separator_moves_captions_to_other_pictures(files: tuple[Path, Path], separator: str) -> None:
    broken = [{"image_id": i, "caption": caption.replace(" ", separator) + separator} for i, caption in SAID.items()]
    lines(files[0], broken)
    lines(
        files[1],
        [{"image_id": i, "references": [separator.join(c.split()) for c in several]} for i, several in PEOPLE.items()],
    )
    assert report(*files)["scores"] == expected()


def test_empty_captions_have_a_score(files: tuple[Path, Path]) -> None:
    lines(files[0], [{"image_id": i, "caption": ""} for i in SAID])
    lines(files[1], [{"image_id": i, "references": ["", "🐕", *several]} for i, several in PEOPLE.items()])
    found = report(*files)["scores"]
    assert found["CIDEr-D"] == 0
    assert found["BLEU-1"] < 1e-5


def test_captions_of_ten_thousand_words_have_a_score(files: tuple[Path, Path]) -> None:
    lines(files[0], [{"image_id": i, "caption": f"{caption}, " * 3_000} for i, caption in SAID.items()])
    lines(
        files[1], [{"image_id": i, "references": [f"{c}. " * 3_000 for c in several]} for i, several in PEOPLE.items()]
    )
    assert 0 < report(*files)["scores"]["ROUGE-L"] <= 1


def test_one_picture_has_a_score_and_a_warning(files: tuple[Path, Path]) -> None:
    lines(files[0], [{"image_id": 1, "caption": SAID[1]}])
    found = report(*files)
    assert found["scores"]["CIDEr-D"] == 0
    assert found["scores"]["BLEU-1"] > 0
    assert "1 picture is too few for reliable scores: CIDEr is always 0 with one picture" in found["warnings"][0]


@pytest.mark.parametrize(
    ("predictions", "references", "told"),
    [
        ("", None, "p.jsonl: has no captions; write one JSON object a line"),
        ("[]", None, "p.jsonl: has no captions"),
        (
            '{"id": 1, "caption": "a"}\n{"id": "1", "caption": "b"}',
            None,
            "line 2: has the same picture, '1', as p.jsonl: line 1",
        ),
        ('{"id": 7, "caption": "a"}', None, r"r.jsonl: has no references for 1 of 1 predicted pictures \(7\)"),
        ('{"id": 1, "caption": "a"}', '{"id": 1, "references": []}', "has no references for 1 of 1"),
        ('{"caption": "a"}', None, "line 1: found the keys `caption`; add the picture's id, one of `image_id`"),
        ('{"id": null, "caption": "a"}', None, "line 1: id: found null; make it a number or text"),
        ('{"id": true, "caption": "a"}', None, "line 1: id: found true"),
        ('{"id": 1, "caption": 5}', None, "line 1: caption: found 5; make it text"),
        ('{"id": 1, "captions": []}', None, "line 1: has an empty list of captions"),
        ('{"id": 1, "captions": ["a", null]}', None, "line 1: captions: found null"),
        ("\n\n{'id': 1}", None, "line 3: is not JSON"),
        ("5", None, "line 1: found 5; make it an object"),
        ("[" * 100_000, None, "line 1: is not JSON"),
        ('{"id": 1, "caption": "a"}', "nothing", "r.jsonl: line 1: is not JSON"),
        ('{"id": 1, "caption": "a"}', '{"id": 1}', "r.jsonl: line 1: found the keys `id`; add one of `references`"),
    ],
)
def test_bad_data_is_told_by_its_line(
    files: tuple[Path, Path], predictions: str, references: str | None, told: str
) -> None:
    Path("p.jsonl").write_text(predictions)
    Path("r.jsonl").write_text(files[1].read_text() if references is None else references)
    with pytest.raises(DataError, match=told):
        command("p.jsonl", "r.jsonl")


def test_predictions_alone_are_not_taken_for_their_own_references(files: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="line 1: found the keys `image_id`, `caption`; add one of `references`"):
        command(files[0])


def test_files_that_can_not_be_read_or_written_are_told(files: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"lost\.jsonl: No such file"):
        command("lost.jsonl", files[1])
    Path("latin.jsonl").write_bytes('{"id": 1, "caption": "café"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: byte 26: is not UTF-8"):
        command("latin.jsonl", files[1])
    with pytest.raises(ConfigError, match="name a place that can be written to"):
        command(*files, "--json", files[0] / "out.json")


def test_a_byte_order_mark_and_lone_surrogates_are_no_obstacle(files: tuple[Path, Path]) -> None:
    text = '{"image_id": 1, "caption": "\\ud83d a red dog runs"}\n' + "".join(files[0].read_text().splitlines(True)[1:])
    files[0].write_text(text, encoding="utf-8-sig")
    assert report(*files)["scores"] == expected()


def test_a_metric_added_to_the_registry_is_reported_with_an_interval(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    length = Metric(lambda corpus: corpus.candidate_lengths.astype(float), note="words per caption")
    before = report(*files)
    monkeypatch.setitem(METRICS, "Length", length)
    after = report(*files, "--each", "each.jsonl")
    assert after["scores"] == {**before["scores"], "Length": pytest.approx((4 + 2 + 5) / 3)}
    low, high = after["intervals_95"]["Length"]
    assert 2 <= low < after["scores"]["Length"] < high <= 5
    assert {name: after["intervals_95"][name] for name in before["intervals_95"]} == before["intervals_95"]
    assert [line["Length"] for line in read_json_lines(Path("each.jsonl"))] == [4, 2, 5]
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Length")]
    assert row.split()[:3] == ["Length", "3.667", f"{low:.3f}"]
    assert row.endswith("words per caption")
