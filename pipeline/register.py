"""Register: the fine-tuned model and its evaluation -> a version in MLflow's registry that leads back to its data.

It may be run again at any time: a model that the registry has is not registered twice, and on a new or
emptied registry the run and the version are made again from the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params, flatten
from pipeline.data.dataset import PictureReader, read_examples
from pipeline.data.fingerprints import fingerprints_of, write_fingerprints
from pipeline.data.images import data_url
from pipeline.models.weights import weights_hash
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, read_json_lines, sha256_of, swapped_in, write_json
from pipeline.runtime.import_closure import deciding
from pipeline.tracking import registry
from pipeline.training.history import read_history

if TYPE_CHECKING:
    from pipeline.tracking import runs

PACKAGE = Path(__file__).parent  # goes along with the registered model
SERVED = PACKAGE / "tracking" / "pyfunc.py"
CARD = "MODEL_CARD.md"
_SCORE = "test_CIDEr-D"
_TABLE = 60  # pictures in MLflow's table
_REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy", "pandas"),
    *("pydantic", "ruamel.yaml"),
)


def run(params: Params, args: argparse.Namespace) -> str:
    """Register the model where the registry does not have it; returns the last line to print."""
    from pipeline.tracking import runs

    training, evaluation, model_sha256 = _what_is_there()
    name, key = params.register_.model, training["training_key"]
    with runs.reachable():
        store = runs.client()
        experiment_id = runs.experiment(store, params.register_.experiment)
        for dead in runs.close_dead_runs(store, experiment_id):
            print(f"register: closed the MLflow run {dead}, whose process had died")
        known = runs.find_run(store, experiment_id, key) is not None
        tags = {} if known else {runs.RESTORED: "true"}
        run_name = runs.run_name(params.ingest.sources, training["checkpoint"])
        with runs.training_run(store, experiment_id, key, tags, run_name) as training_run:
            version = registry.find_version(store, name, model_sha256)
            # Where a version came from is told when it is made; today's commit and data are not those of an old one.
            facts = _facts(training, model_sha256, params) if version is None else version.tags
            facts = {tag: value for tag, value in facts.items() if tag != _SCORE}
            card = _card(name, training, evaluation, facts)
            _log(training_run, params, training, evaluation, facts)
            training_run.describe(card)
            if version is None:
                with TemporaryDirectory() as folder:
                    number = _register(store, training_run, name, Path(folder), card, facts)
            else:
                number = version.number
                store.update_model_version(name, str(number), card)
            store.set_model_version_tag(name, str(number), _SCORE, f"{evaluation['model']['CIDEr-D']:.4f}")
    # What the registry answered is no part of this file: it is the same wherever the model is registered.
    with swapped_in(paths.REGISTER_REPORT) as (report,):
        write_json(report, {"model": name, "model_sha256": model_sha256, "training_key": key})
    return (
        f"models:/{name}/{number} {'was already' if version else 'is new'} in the registry, run {training_run.name};"
        " look with `make ui`, caption a photo with `python -m pipeline.commands.caption PHOTO`"
    )


def _what_is_there() -> tuple[dict[str, Any], dict[str, Any], str]:
    """What made the model, its evaluation, and its hash, after checking that the files are what these say.

    Raises:
        DataError: a file is missing, or the model or the data set is not the one that the reports speak of.
    """
    for needed in (paths.TRAINING, paths.EVALUATE_REPORT, paths.FINETUNE_REPORT, paths.FINETUNE_CURVE):
        if not needed.is_file():
            raise DataError(f"{needed}: not found; run `dvc repro`, which fine-tunes and evaluates first")
    training, model_sha256 = read_json(paths.TRAINING), read_json(paths.FINETUNE_REPORT)["model_sha256"]
    if weights_hash(paths.MODEL) != model_sha256:
        raise DataError(f"{paths.MODEL}: is not the model that {paths.FINETUNE_REPORT} speaks of; run `dvc repro`")
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
    """Bring the run up to date: params, curve, test metrics, and what a person looks at."""
    run.params(params.flat("ingest", "build") | flatten("finetune", training["params"]))
    run.tags(facts)
    run.trained_on(paths.DATASET.as_posix(), training["data_sha256"])
    for epoch in read_history(paths.FINETUNE_CURVE):
        run.metrics(epoch.metrics(), epoch.epoch)
    systems = {system: scores for system, scores in evaluation.items() if isinstance(scores, dict)}
    run.replace_metrics(
        {
            f"test/{name}" if system == "model" else f"test/{name}/{system}": value
            for system, scores in systems.items()
            for name, value in scores.items()
            if isinstance(value, float)  # intervals are no metrics, and what there was nothing to count of has none
        }
    )
    for file, again in (
        (paths.PARAMS, False),
        (paths.DVC_LOCK, False),
        (paths.EVALUATE_REPORT, True),
        (paths.GALLERY, True),
    ):
        if file.is_file():
            run.file(file, again)
    run.table(f"captions-{sha256_of(paths.CAPTIONS)[:8]}.json", _table())


def _table() -> dict[str, list[Any]]:
    """The first test captions as columns, with their pictures (as JPEG bytes)."""
    lines = list(read_json_lines(paths.CAPTIONS))[:_TABLE]
    reader = PictureReader(paths.DATASET / "test")
    said = {system: [line["captions"][system] for line in lines] for system in lines[0]["captions"]}
    return {
        "picture": [reader.read(line["file_name"]) for line in lines],
        "model": said.pop("model"),
        "people": [" | ".join(line["references"]) for line in lines],
        **said,
    }


def _register(store: Any, run: runs.TrainingRun, name: str, folder: Path, card: str, tags: Mapping[str, str]) -> int:

    pictures = folder / registry.TRAINED_ON
    (folder / CARD).write_text(card, encoding="utf-8")
    write_fingerprints(pictures, fingerprints_of(read_examples(paths.DATASET / "train")))
    test = read_examples(paths.DATASET / "test")[0]
    example = data_url(PictureReader(paths.DATASET / "test").read(test.file_name), 128)
    uri = registry.log_model(
        run,
        code=PACKAGE,
        served=SERVED,
        artifacts={"checkpoint": paths.MODEL, "card": folder / CARD, "training_pictures": pictures},
        example=example,
        requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
    )
    return registry.register(store, run, name, uri, tags, card)


def _facts(training: Mapping[str, Any], model_sha256: str, params: Params) -> dict[str, str]:
    """What leads from the model back to its data, params and code, as tags."""
    from pipeline.tracking import runs

    used = params.flat("ingest", "build") | flatten("finetune", training["params"])
    root = Path(__file__).parent.parent
    same_code = training["code_sha256"] == sha256_of(*(root / file for file in deciding("pipeline.finetune")))
    return {
        registry.MODEL_SHA256: model_sha256,
        runs.TRAINING_KEY: training["training_key"],
        "data_sha256": training["data_sha256"],
        "code_sha256": training["code_sha256"],
        "computed_in": training["computed_in"],
        "params": json.dumps(used),
        **_dvc_hashes(),
        **(_git_state() if same_code else {"git.commit": "unknown: the code has changed since the training"}),
    }


def _dvc_hashes() -> dict[str, str]:
    """DVC's own hashes of the built data set and of the raw sources in it, as `dvc.lock` has them."""
    if not paths.DVC_LOCK.is_file():
        return {"dvc": "no dvc.lock: run without DVC"}
    stages = YAML(typ="safe", pure=True).load(paths.DVC_LOCK.read_text(encoding="utf-8")).get("stages", {})
    hashes: dict[str, str] = {}
    # The lock remembers sources that are no longer used, so the data set itself is asked which are.
    for source in sorted({source for e in read_examples(paths.DATASET / "train") for source in e.sources}):
        deps = stages.get(f"ingest@{source}", {}).get("deps", [])
        hashes |= {f"dvc.raw.{source}": d["md5"] for d in deps if Path(d["path"]) == paths.RAW / source}
    for out in stages.get("build", {}).get("outs", []):
        if Path(out["path"]) == paths.DATASET:
            hashes["dvc.dataset"] = out["md5"]
    return hashes


def _git_state() -> dict[str, str]:
    """The commit, and whether tracked files other than DVC's own lock differed from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){paths.DVC_LOCK}")
    except (OSError, subprocess.CalledProcessError):
        return {"git.commit": "none"}
    return {"git.commit": commit, "git.dirty": str(bool(dirty)).lower()}


def _figure(scores: Mapping[str, Any], name: str) -> str:
    """A score with its 95 % interval."""
    low, high = scores["intervals_95"][name]
    return f"{scores[name]:.3f} ({low:.2f} to {high:.2f})"


def _card(name: str, training: Mapping[str, Any], evaluation: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """The model card: what it is, from what, how good, what it is not for."""
    systems = {system: scores for system, scores in evaluation.items() if isinstance(scores, dict)}
    names = list(systems["model"]["intervals_95"])
    table = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for system, scores in systems.items():
        table.append(f"| {system.replace('_', ' ')} | {' | '.join(_figure(scores, n) for n in names)} |")
    facts = "\n".join(f"* `{key}`: {value}" for key, value in tags.items() if key != "params")
    params = training["params"]
    return f"""# {name}

A GIT model (image in, caption out), fine-tuned from `{training["checkpoint"]}` for up to {params["epochs"]} epochs;
epoch {training["best_epoch"]} did best on the validation pictures and is this one.

## Figures

On {evaluation["pictures"]} pictures of the test split with {evaluation["references"]} reference captions:

{chr(10).join(table)}

In brackets: 95 % intervals (bootstrap over the pictures). Words: {evaluation["tokenizer"]}.

## Where it comes from

{facts}

The SHA-256 and the perceptual hash of every picture that it was trained on stand in `{registry.TRAINED_ON}`.

## Use

Send a picture's bytes, base64 or a data: URL in the column `image`; the answer has a `caption`, or the reason in
`error`. The captions have the habits of those that it learned from, and what those say of people may be wrong or
unwanted: do not publish them unread.
"""


if __name__ == "__main__":
    entrypoint.main("register", run, lock=lambda args: "register")
