"""Register: the fine-tuned model and its evaluation -> a version in MLflow's registry with its provenance.

It is safe to run again: a model is never registered twice, and in a new or emptied registry the run and the version are
recreated from the files.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params, flatten
from pipeline.config.sections.finetune import CREATED
from pipeline.data.dataset import PictureReader, read_examples
from pipeline.data.fingerprints import fingerprints_of, write_fingerprints
from pipeline.data.images import data_url
from pipeline.models.weights import weights_hash
from pipeline.runtime import entrypoint, leftovers
from pipeline.runtime.atomic_files import read_json, read_json_lines, sha256_of, swapped_in, write_json
from pipeline.tracking import captions_page, comparison, deletion, model_card, registration, registry, run_metrics
from pipeline.tracking.run_names import run_name
from pipeline.training.history import read_history

if TYPE_CHECKING:
    from pipeline.tracking import runs

PACKAGE = Path(__file__).parent  # packaged with the registered model
SERVED = PACKAGE / "tracking" / "pyfunc.py"
CARD = "MODEL_CARD.md"
_SCORE, _VERDICT = "test_CIDEr-D", "test_verdict"  # tags of the current evaluation
_SETTLE_SECONDS = 1.0  # longer than MLflow takes to create a run
_SHOWN = 60  # pictures on the page of captions
_REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "tokenizers", "safetensors", "pillow", "pillow-heif", "numpy", "pandas"),
    *("pydantic", "regex", "ruamel.yaml"),
)


def run(params: Params, args: argparse.Namespace) -> str:
    """Register the model, unless the registry has it, and return the last line to print."""
    from pipeline.tracking import provenance, runs

    training, evaluation, model_sha256 = _checked_inputs()
    name, key = params.register_.model, training["training_key"]
    with runs.reachable():
        store = runs.client()
        experiment_id = runs.experiment(store, params.register_.experiment)
        for dead in runs.close_dead_runs(store, experiment_id):
            print(f"register: closed the MLflow run {dead}, whose process had died")
        if left := deletion.delete_leftovers(store, experiment_id, name):
            print(f"register: deleted from MLflow what registrations that were cut off had left ({left} models)")
        known = runs.find_run(store, experiment_id, key) is not None
        tags = {} if known else {runs.RESTORED: "true"}
        title = run_name(params.ingest.sources, training["checkpoint"])
        with runs.training_run(store, experiment_id, key, tags, title, _SETTLE_SECONDS) as training_run:
            version = registry.find_version(store, name, model_sha256)
            # An old version keeps the tags it was registered with: today's commit and data are not its own.
            facts = provenance.tags_of(training, model_sha256, params) if version is None else version.tags
            current = (_SCORE, _VERDICT, "gate.")  # of the evaluation and of `promote`, not of the training
            facts = {tag: value for tag, value in facts.items() if not tag.startswith(current)}
            card = model_card.render(name, training, evaluation, facts, _samples())
            _log(training_run, params, training, evaluation, facts)
            for architecture in sorted(evaluation.keys() & set(CREATED)):
                _log_compared(store, experiment_id, training_run, params, architecture, evaluation[architecture])
            description = model_card.description(card, version.tags if version else {})
            training_run.describe(description)
            if version is None:
                with leftovers.temporary_folder() as folder:
                    with_captions = params.register_.training_captions
                    number = _register(store, training_run, name, folder, card, description, facts, with_captions)
            else:
                number = version.number
                store.update_model_version(name, str(number), description)
            verdict = comparison.verdict(comparison.comparisons(evaluation, "CIDEr-D"))
            registry.note(
                store, name, number, {_SCORE: f"{evaluation['model']['CIDEr-D']:.4f}", _VERDICT: verdict or "unknown"}
            )
    # The file has no version number, so it is the same in every registry.
    with swapped_in(paths.REGISTER_REPORT) as (report,):
        write_json(report, {"model": name, "model_sha256": model_sha256, "training_key": key})
    return (
        f"models:/{name}/{number} {'was already' if version else 'is new'} in the registry, run {training_run.name};"
        " look with `image-captioning ui`, caption a photo with `image-captioning caption PHOTO`"
    )


def _checked_inputs() -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return training.json, the evaluation report and the hash of the model, after checking the files against them.

    Raises:
        DataError: a file is missing, or the model or the data set is not the one of the reports.
    """
    reports = (paths.BUILD_REPORT, paths.EVALUATE_REPORT, paths.FINETUNE_REPORT, paths.FINETUNE_CURVE)
    for needed in (paths.TRAINING, *reports):
        if not needed.is_file():
            raise DataError(f"{needed}: not found; run `dvc repro`, which fine-tunes and evaluates first")
    training, model_sha256 = read_json(paths.TRAINING), read_json(paths.FINETUNE_REPORT)["model_sha256"]
    if weights_hash(paths.MODEL) != model_sha256:
        raise DataError(f"{paths.MODEL}: is not the model of {paths.FINETUNE_REPORT}; run `dvc repro`")
    if sha256_of(paths.DATASET / "train", paths.DATASET / "validation") != training["data_sha256"]:
        raise DataError(f"{paths.DATASET}: is not what {paths.MODEL} was trained on; run `dvc repro`")
    return training, read_json(paths.EVALUATE_REPORT), model_sha256


def _log(
    run: runs.TrainingRun,
    params: Params,
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    facts: Mapping[str, str],
) -> None:
    """Bring the run up to date: params, training curve, test metrics, files and a table of captions."""
    run.params(params.flat("ingest", "build") | flatten("finetune", training["params"]))
    run.tags(facts)
    run.trained_on(paths.DATASET.as_posix(), training["data_sha256"])
    run.replace_metrics(run_metrics.of_evaluation(evaluation) | run_metrics.of_build(read_json(paths.BUILD_REPORT)))
    for epoch in read_history(paths.FINETUNE_CURVE):
        run.metrics(epoch.metrics(), epoch.epoch)
    for file, again in (
        (paths.PARAMS, False),
        (paths.DVC_LOCK, False),
        (paths.EVALUATE_REPORT, True),
        (paths.GALLERY, True),
    ):
        if file.is_file():
            run.file(file, again)
    lines = list(read_json_lines(paths.CAPTIONS))[:_SHOWN]
    run.page(captions_page.NAME, captions_page.render(lines, PictureReader(paths.DATASET / "test")))


def _log_compared(
    store: Any,
    experiment_id: str,
    parent: runs.TrainingRun,
    params: Params,
    architecture: str,
    scores: Mapping[str, Any],
) -> None:
    """Bring the run of a compared architecture up to date, and show it below the model's run.

    Raises:
        DataError: its files are missing.
    """
    from pipeline.tracking import runs

    facts, curve = paths.COMPARED / architecture / paths.TRAINING.name, paths.COMPARE_REPORTS / f"{architecture}.csv"
    for needed in (facts, curve):
        if not needed.is_file():
            raise DataError(f"{needed}: not found; run `dvc repro`, which trains and evaluates {architecture} first")
    training = read_json(facts)
    key, title = training["training_key"], run_name(params.ingest.sources, architecture)
    tags = {"mlflow.source.name": "python -m pipeline.compare"}
    known = runs.find_run(store, experiment_id, key)
    if known is None:
        tags[runs.RESTORED] = "true"
    elif known.info.run_id == parent.id:  # the model itself: same start, data and settings
        return
    with runs.training_run(store, experiment_id, key, tags, title, _SETTLE_SECONDS) as run:
        run.params(params.flat("ingest", "build") | flatten("finetune", training["params"]))
        run.trained_on(paths.DATASET.as_posix(), training["data_sha256"])
        run.replace_metrics(run_metrics.of_system(scores))
        for epoch in read_history(curve):
            run.metrics(epoch.metrics(), epoch.epoch)
        run.nest_below(parent.id)


def _samples() -> list[model_card.Sample]:
    """Return the first test pictures with the model's caption and a person's."""
    reader = PictureReader(paths.DATASET / "test")
    return [
        model_card.Sample(reader.read(line["file_name"]), line["captions"]["model"], line["references"][0])
        for line in islice(read_json_lines(paths.CAPTIONS), model_card.SHOWN)
    ]


def _register(
    store: Any,
    run: runs.TrainingRun,
    name: str,
    folder: Path,
    card: str,
    description: str,
    tags: Mapping[str, str],
    with_captions: bool,
) -> int:
    """Log the model and register it; return the number of the new version.

    Args:
        store: MLflow's client.
        run: the run to log to.
        name: the registered model.
        folder: an empty folder for files that are made here.
        card: the model card.
        description: the description of the version.
        tags: the tags of the version.
        with_captions: whether the index with the training captions goes with it.
    """
    pictures = folder / registry.TRAINED_ON
    write_fingerprints(pictures, fingerprints_of(read_examples(paths.DATASET / "train")))
    test = read_examples(paths.DATASET / "test")[0]
    example = data_url(PictureReader(paths.DATASET / "test").read(test.file_name), 128)
    if with_captions:
        index = {"neighbours": paths.NEIGHBOURS}
    else:
        index = {"settings": folder / "settings"}
        index["settings"].mkdir()
        shutil.copy(paths.NEIGHBOURS_SETTINGS, index["settings"])
    uri = registration.log_model(
        run,
        code=PACKAGE,
        served=SERVED,
        artifacts={
            "checkpoint": paths.MODEL,
            **index,
            "training_pictures": pictures,
            **model_card.write(folder, CARD, card, _samples()),
        },
        example=example,
        requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
    )
    return registration.register(store, run, name, uri, tags, description)


if __name__ == "__main__":
    entrypoint.main("register", run, lock=lambda args: "register")
