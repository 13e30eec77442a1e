"""Evaluate: models/finetune on data/dataset/test -> reports/evaluate.json, captions, and a gallery to look at.

Beside the model stand two naive answers (the most frequent training caption; the caption of the training
picture nearest in pixels) and, where training started from one, the checkpoint before fine-tuning.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.config.sections.evaluate import Evaluate
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.data.images import data_url
from pipeline.evaluation import baselines, gallery
from pipeline.evaluation.bootstrap import differences, intervals, warning
from pipeline.evaluation.diversity import mean_length, wording
from pipeline.evaluation.metrics.scoring import Statistics, statistics
from pipeline.evaluation.ptb.tokens import TOKENIZER, ptb_tokenize
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json_lines, sha256_of, swapped_in, write_json, write_json_lines

_BARS = "metrics.csv"
_COCO_RESULTS, _COCO_ANNOTATIONS = "coco_results.json", "coco_annotations.json"
_SHEET = "contact_sheet.png"
_PLOTTED = 12  # pictures that `dvc plots` shows
_MODEL = "model"
_BEFORE = "before_finetuning"


def run(params: Params, args: argparse.Namespace) -> str:
    """Caption, score, and return the last line to print."""
    settings = params.evaluate
    test = fair_share(read_examples(paths.DATASET / "test"), settings.max_pictures)
    if not test:
        raise ConfigError("params.yaml: build.test: is 0, so there is nothing to evaluate on; set it to 0.15")
    with swapped_in(paths.EVALUATE_REPORT, paths.EVALUATE_FOLDER) as (report, folder):
        folder.mkdir()
        # Written before they are scored, so that they can be scored again without any model.
        write_json_lines(folder / paths.CAPTIONS.name, _lines(test, _answers(test, params)))
        lines = list(read_json_lines(folder / paths.CAPTIONS.name))
        _write_coco(folder, lines)
        references = [[ptb_tokenize(caption) for caption in line["references"]] for line in lines]
        said = {system: [line["captions"][system] for line in lines] for system in lines[0]["captions"]}
        counted = {
            system: statistics([ptb_tokenize(text) for text in texts], references) for system, texts in said.items()
        }
        metrics = {system: counts.scores() for system, counts in counted.items()}
        each = {system: counts.each()["CIDEr-D"].tolist() for system, counts in counted.items()}
        people = [line["references"] for line in lines]
        learned = [caption for example in read_examples(paths.DATASET / "train") for caption in example.captions]
        figures = {system: _figures(counted[system], said[system], people, learned) for system in said}
        for system in figures.keys() - {_MODEL}:
            figures[system]["model_is_above_by"] = _above(counted[_MODEL], counted[system])
        write_json(
            report,
            {
                **figures,
                "pictures": len(lines),
                "references": sum(map(len, references)),
                "reference_words": mean_length([words for several in references for words in several]),
                "tokenizer": TOKENIZER,
                "test_sha256": sha256_of(paths.DATASET / "test"),
            },
        )
        _write_bars(folder / _BARS, metrics)
        ends = {system: values["intervals_95"] for system, values in figures.items()}
        _write_gallery(folder, lines, metrics, ends, each, settings)
    others = {name: values["CIDEr-D"] for name, values in metrics.items() if name != _MODEL}
    versus = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in others.items())
    if few := warning(len(lines)):
        print(f"evaluate: {few}")
    return (
        f"CIDEr-D {metrics[_MODEL]['CIDEr-D']:.3f} on {len(lines):,} test pictures ({versus}); all figures are in"
        f" {paths.EVALUATE_REPORT}, the pictures in {paths.GALLERY}"
    )


def _figures(
    counted: Statistics, texts: Sequence[str], people: Sequence[Sequence[str]], learned: Sequence[str]
) -> dict[str, Any]:
    """What the report tells of a system. `dvc metrics` leaves lists out, so intervals do not crowd its table."""
    ends = {name: [round(end, 4) for end in interval] for name, interval in intervals(counted).items()}
    return {**counted.scores(), **wording(texts, people, learned), "intervals_95": ends}


def _above(model: Statistics, other: Statistics) -> dict[str, list[float]]:
    """By how much the model's scores are above another's on the same pictures: the difference, its 95 % interval."""
    found = differences(other, model)
    return {name: [round(value, 4) for value in (gain.value, gain.low, gain.high)] for name, gain in found.items()}


def _answers(test: Sequence[Example], params: Params) -> dict[str, list[str]]:
    """What each system says of each picture."""
    reader = PictureReader(paths.DATASET / "test")
    pictures = [reader.read(example.file_name) for example in test]
    answers = {_MODEL: _captions(paths.MODEL, pictures, params, _MODEL)}
    if (before := _before(params)) is not None:
        answers[_BEFORE] = _captions(before, pictures, params, "before fine-tuning")
    train = read_examples(paths.DATASET / "train")
    if not train:
        raise DataError(f"{paths.DATASET / 'train'}: has no pictures; run `dvc repro` to build the data set")
    train_reader = PictureReader(paths.DATASET / "train")
    answers["nearest_picture"] = baselines.nearest(train, (train_reader.read(e.file_name) for e in train), pictures)
    answers["most_frequent"] = [baselines.most_frequent(train)] * len(test)
    return answers


def _before(params: Params) -> Path | None:
    """The checkpoint that training started from; none where that was random weights."""
    from pipeline.models.factory import SCRATCH
    from pipeline.tracking import checkpoints

    if params.finetune.checkpoint == SCRATCH:
        return None
    return checkpoints.locate(params.finetune.checkpoint, params.finetune.revision)


def _captions(folder: Path, pictures: Sequence[bytes], params: Params, name: str) -> list[str]:
    from pipeline.models.captioner import Captioner

    captioner = Captioner.from_folder(folder)
    return captioner.caption_all(
        pictures,
        beams=params.evaluate.beams,
        max_tokens=params.finetune.max_tokens,
        batch_size=params.runtime.caption_batch_size,
        name=f"evaluate {name}",
    )


def _lines(test: Sequence[Example], answers: dict[str, list[str]]) -> Iterator[dict[str, object]]:
    for i, example in enumerate(test):
        yield {
            "file_name": example.file_name,
            "references": example.captions,
            "captions": {system: captions[i] for system, captions in answers.items()},
        }


def _write_coco(folder: Path, lines: Sequence[dict]) -> None:
    """What the model says as COCO's results, and what people say as its annotations, for other tools to score."""
    numbered = list(enumerate(lines, start=1))
    said = [{"image_id": number, "caption": line["captions"][_MODEL]} for number, line in numbered]
    people = [(number, caption) for number, line in numbered for caption in line["references"]]
    write_json(folder / _COCO_RESULTS, said)
    write_json(
        folder / _COCO_ANNOTATIONS,
        {
            "images": [{"id": number, "file_name": line["file_name"]} for number, line in numbered],
            "annotations": [{"id": k, "image_id": n, "caption": c} for k, (n, c) in enumerate(people, start=1)],
        },
    )


def _write_bars(path: Path, metrics: dict[str, dict[str, float]]) -> None:
    """A row a bar of `dvc plots`, whose templates tell systems apart by name only."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["bar", "value"])
        for name in next(iter(metrics.values())):
            writer.writerows([f"{name} {system}", values[name]] for system, values in metrics.items())


def _write_gallery(
    folder: Path,
    lines: Sequence[dict],
    metrics: dict[str, dict[str, float]],
    ends: dict[str, dict[str, list[float]]],
    each: dict[str, list[float]],
    settings: Evaluate,
) -> None:
    reader = PictureReader(paths.DATASET / "test")
    versus = _BEFORE if _BEFORE in each else None
    gains = [score - each[versus][i] if versus else 0.0 for i, score in enumerate(each[_MODEL])]
    shown = [
        gallery.Shown(
            name=lines[i]["file_name"],
            picture=data_url(reader.read(lines[i]["file_name"]), 320),
            references=lines[i]["references"],
            captions=lines[i]["captions"],
            scores={system: scores[i] for system, scores in each.items()},
        )
        for i in gallery.telling(each[_MODEL], gains, settings.gallery_pictures)
    ]
    page = gallery.render(shown, metrics, ends, len(lines), "Captions of the test split", _MODEL, versus)
    (folder / paths.GALLERY.name).write_text(page, encoding="utf-8")
    plotted = [(reader.read(line["file_name"]), _said(line)) for line in lines[:_PLOTTED]]
    gallery.contact_sheet(plotted).save(folder / _SHEET)


def _said(line: dict) -> dict[str, str]:
    """What the contact sheet tells of a picture, in its order."""
    captions = line["captions"]
    if _BEFORE in captions:
        ours = {"before": captions[_BEFORE], "after": captions[_MODEL]}
    else:
        ours = {"model": captions[_MODEL]}
    return {**ours, "people": line["references"][0]}


if __name__ == "__main__":
    entrypoint.main("evaluate", run, lock=lambda args: "evaluate")
