"""Evaluate: models/finetune on data/dataset/test -> scores in reports/evaluate.json, captions, and a gallery.

The model is compared with three baselines (the most frequent training caption; the caption of the training picture
nearest in pixels; the consensus of the pictures nearest in the model's features), with the checkpoint before
fine-tuning, if training started from one, as it is and in the style of the training captions, and with the
architectures of `compare`. The features and captions of the training pictures are kept as an index, models/neighbours,
with which the model can choose its captions.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.config.sections.finetune import CREATED
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.evaluation import architectures, baselines, coco, pages, scores_report
from pipeline.evaluation.bootstrap import warning
from pipeline.evaluation.restyled import Frames
from pipeline.evaluation.scores_report import HEADLINE, Captions
from pipeline.runtime import costs, entrypoint
from pipeline.runtime.atomic_files import (
    read_json,
    read_json_lines,
    swapped_in,
    write_json,
    write_json_lines,
)
from pipeline.runtime.progress import progress_bar
from pipeline.tracking.comparison import BEAM_SEARCH, RESTYLED, comparisons, verdict

if TYPE_CHECKING:
    from pipeline.models.captioner import Captioner
    from pipeline.models.data_set_captions import DataSetCaptioning
    from pipeline.models.model_files import ModelFiles
    from pipeline.models.neighbours import Neighbours

_SCORES_CSV = "metrics.csv"
_CONTACT_SHEET = "contact_sheet.png"
_ARCHITECTURES = "architectures.md"
_MODEL = "model"
_BEFORE = "before_finetuning"
_CONSENSUS = "nearest_consensus"
_CONSENSUS_OF = 20  # pictures
_FRAMES_FROM = 300  # training pictures
_NOT_SHOWN = (BEAM_SEARCH, RESTYLED, _CONSENSUS)  # `dvc metrics` shows at most eight values of the model's run


@dataclass(frozen=True)
class Answers:
    """What all systems say.

    Attributes:
        captions: of the systems.
        seconds: how long each model took.
        attending: the folders of the models that can say where they looked.
    """

    captions: Captions
    seconds: dict[str, float]
    attending: dict[str, Path]


def run(params: Params, args: argparse.Namespace) -> str:
    """Caption and score the test split, write the reports, and return the last line to print."""
    test = fair_share(read_examples(paths.DATASET / "test"), params.evaluate.max_pictures)
    if not test:
        raise ConfigError("params.yaml: build.test: is 0, so there is nothing to evaluate on; set it to 0.15")
    outputs = (paths.EVALUATE_REPORT, paths.EVALUATE_METRICS, paths.EVALUATE_FOLDER, paths.NEIGHBOURS)
    with swapped_in(*outputs) as (report_file, metrics_file, folder, index):
        folder.mkdir()
        # Captions are written before they are scored, so that scores can be recomputed without the models.
        answers = _captions_of_systems(test, params, index)
        write_json_lines(folder / paths.CAPTIONS.name, scores_report.lines_of(test, answers.captions))
        lines = list(read_json_lines(folder / paths.CAPTIONS.name))
        coco.write(folder, lines, _MODEL)
        captions = {system: [line["captions"][system] for line in lines] for system in lines[0]["captions"]}
        references = [line["references"] for line in lines]
        statistics_of_systems = scores_report.count(captions, references)
        report = scores_report.make_report(
            captions, references, statistics_of_systems, _MODEL, params.evaluate.named_words
        )
        _add_clip_scores(report, captions, lines, params)
        table = _compared(report, answers.seconds, params)
        if table:
            (folder / _ARCHITECTURES).write_text(architectures.markdown(table), encoding="utf-8")
        write_json(report_file, report)
        write_json(metrics_file, scores_report.shown_metrics(report, _MODEL, _NOT_SHOWN))
        scores = {system: counted.scores() for system, counted in statistics_of_systems.items()}
        scores_report.write_scores_csv(folder / _SCORES_CSV, scores)
        per_picture = {system: counted.each()[HEADLINE].tolist() for system, counted in statistics_of_systems.items()}
        shown = pages.Shown(_MODEL, _BEFORE if _BEFORE in scores else None, params.evaluate.gallery_pictures)
        pages.write_gallery(folder / paths.GALLERY.name, lines, report, per_picture, shown, table, answers.attending)
        pages.write_contact_sheet(folder / _CONTACT_SHEET, lines, shown)
    if few := warning(len(lines)):
        print(f"evaluate: {few}")
    return _summary(report, scores, len(lines))


def _add_clip_scores(
    report: dict[str, Any], captions: Captions, lines: Sequence[dict[str, Any]], params: Params
) -> None:
    """Add CLIPScore and RefCLIPScore of each system to the report, if `evaluate.clip_score` names a model."""
    settings = params.evaluate.clip_score
    if settings.checkpoint is None:
        return
    from pipeline.evaluation.clip_score import ClipScorer
    from pipeline.models import factory

    folder = factory.locate(settings.checkpoint, settings.revision, "evaluate.clip_score.checkpoint")
    reader = PictureReader(paths.DATASET / "test")
    pictures = [reader.read(line["file_name"]) for line in lines]
    scorer = ClipScorer(folder, pictures, [line["references"] for line in lines])
    for system, said in captions.items():
        report[system] |= {name: round(value, 4) for name, value in scorer.scores(said).items()}


def _compared(report: dict[str, Any], seconds: dict[str, float], params: Params) -> list[architectures.Row]:
    """Add what they cost to the report's architectures and return their table; empty if none are compared.

    Costs are measured, so they differ from run to run; without `compare` the report has none.
    """
    others = params.compare.architectures
    folders = {_MODEL: paths.MODEL, **{name: paths.COMPARED / name for name in others}}
    for system, folder in folders.items() if others else ():
        training = read_json(folder / paths.TRAINING.name)
        report[system]["cost"] = {
            "parameters": training["parameters"],
            "trained_parameters": training["trained_parameters"],
            "training_seconds": costs.read(training["training_key"]),
            "captions_per_second": round(report["pictures"] / seconds[system], 2),
        }
    start = Path(params.finetune.checkpoint).name
    return architectures.rows(report, _MODEL, start, others) if others else []


def _summary(report: dict[str, Any], scores: dict[str, dict[str, float]], pictures: int) -> str:
    others = ", ".join(
        f"{system.replace('_', ' ')} {values[HEADLINE]:.3f}" for system, values in scores.items() if system != _MODEL
    )
    return (
        f"{HEADLINE} {scores[_MODEL][HEADLINE]:.3f} on {pictures:,} test pictures ({others}):"
        f" {verdict(comparisons(report, HEADLINE))}{_copied(report)};"
        f" all scores: {paths.EVALUATE_REPORT}, gallery: {paths.GALLERY}"
    )


def _copied(report: dict[str, Any]) -> str:
    """Return the share of captions that equal a training caption, if captions were chosen by agreement."""
    if BEAM_SEARCH not in report:
        return ""
    model, beams = report[_MODEL]["copied"], report[BEAM_SEARCH]["copied"]
    return f"; {model:.1%} of its captions equal a training caption, {beams:.1%} by beam search"


def _captions_of_systems(test: Sequence[Example], params: Params, index: Path) -> Answers:
    """Let all systems caption the test pictures, and write the index.

    The systems are the model, the checkpoint before fine-tuning, the compared architectures and the baselines.
    """
    from pipeline.models.data_set_captions import data_set_captioning
    from pipeline.models.model_files import ModelFiles

    train = read_examples(paths.DATASET / "train")
    if not train:
        raise DataError(f"{paths.DATASET / 'train'}: has no pictures; run `dvc repro` to build the data set")
    reader, train_reader = PictureReader(paths.DATASET / "test"), PictureReader(paths.DATASET / "train")
    pictures = [reader.read(example.file_name) for example in test]

    def files_of(folder: Path) -> ModelFiles:
        return ModelFiles(folder.absolute(), None, params.evaluate.generation, params.evaluate.decoding)

    files = files_of(paths.MODEL)
    model = files.load()
    neighbours = _index(model, train, train_reader, params)
    neighbours.write(index)
    near = neighbours.nearest(model.picture_features(pictures, "evaluate features"), _CONSENSUS_OF)
    attending = {_MODEL: paths.MODEL} if model.attends else {}
    del model  # so that it is in memory once only
    captions: Captions = {}
    seconds: dict[str, float] = {}
    with data_set_captioning(params) as captioning:
        compares = params.evaluate.decoding.compares
        chosen = replace(files, neighbours=index.absolute()) if compares else files
        captions[_MODEL], seconds[_MODEL] = captioning.captions(chosen, pictures, "evaluate model")
        if compares:
            captions[BEAM_SEARCH], _ = captioning.captions(files, pictures, "evaluate beam search")
        if (before := _checkpoint_before(params)) is not None:
            earlier = files_of(before)
            captions[_BEFORE], seconds[_BEFORE] = captioning.captions(earlier, pictures, "evaluate before fine-tuning")
            captions[RESTYLED] = _restyled(captioning, earlier, captions[_BEFORE], train, train_reader)
        for name in params.compare.architectures:
            other = files_of(paths.COMPARED / name)
            captions[name], seconds[name] = captioning.captions(other, pictures, f"evaluate {name}")
            attending |= {name: paths.COMPARED / name} if other.load().attends else {}
    captions[_CONSENSUS] = baselines.consensus(neighbours.utility, neighbours.captions, near)
    captions["nearest_picture"] = baselines.nearest(train, (train_reader.read(e.file_name) for e in train), pictures)
    captions["most_frequent"] = [baselines.most_frequent(train)] * len(test)
    return Answers(captions, seconds, attending)


def _restyled(
    captioning: DataSetCaptioning,
    earlier: ModelFiles,
    texts: Sequence[str],
    train: Sequence[Example],
    reader: PictureReader,
) -> list[str]:
    """Return the captions of the checkpoint before fine-tuning in the frames of the training captions."""
    some = fair_share(train, _FRAMES_FROM)
    pictures = [reader.read(example.file_name) for example in some]
    captions, _ = captioning.captions(earlier, pictures, "evaluate restyled", beams=1)
    frames = Frames(captions, [example.captions for example in some])
    return [frames.restyle(text) for text in texts]


def _index(model: Captioner, train: Sequence[Example], reader: PictureReader, params: Params) -> Neighbours:
    """Return the index of the training pictures.

    The features of a frozen image encoder are still in the cache of the training; the others have the same bits.
    """
    import numpy as np

    from pipeline.models.captioner import pooled
    from pipeline.models.neighbours import Neighbours
    from pipeline.models.precision import compute_dtype
    from pipeline.models.weights import weights_hash
    from pipeline.training.feature_cache import (
        ENCODE_BATCH,
        FeatureCache,
        FeatureEncoder,
        NoRoomError,
        UncachedFeatures,
    )
    from pipeline.training.loader import Pictures

    device = next(model.checkpoint.model.parameters()).device
    encoder = FeatureEncoder(model.checkpoint, compute_dtype(params.finetune.precision, device))
    pictures = Pictures(train, reader, model.checkpoint, memory=0)
    features: FeatureCache | UncachedFeatures = UncachedFeatures(encoder, pictures)
    if params.finetune.freeze == "image_encoder":
        with contextlib.suppress(NoRoomError):
            features = FeatureCache(encoder, [pictures], paths.FEATURES, int(params.runtime.feature_cache_gb * 1e9))
    rows, every = [], range(len(train))
    for first in progress_bar(every[::ENCODE_BATCH], desc="evaluate index", unit=" batches"):
        rows += [pooled(row[None])[0] for row in features.__getitems__(every[first : first + ENCODE_BATCH])]
    settings = params.evaluate
    facts = {
        "model_sha256": weights_hash(paths.MODEL),
        "generation": settings.generation.model_dump(),
        "decoding": settings.decoding.model_dump(),
    }
    return Neighbours(np.stack(rows).astype(np.float16), [e.captions for e in train], [e.sha256 for e in train], facts)


def _checkpoint_before(params: Params) -> Path | None:
    """Return the checkpoint that training started from; None if it started from random weights."""
    from pipeline.tracking import checkpoints

    if params.finetune.checkpoint in CREATED:
        return None
    return checkpoints.locate(params.finetune.checkpoint, params.finetune.revision, params.runtime.model_cache_gb)


if __name__ == "__main__":
    entrypoint.main("evaluate", run, lock=lambda args: "evaluate")
