"""Where a model came from: hashes of its data, DVC's hashes, its params and its commit, as tags of a version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params, flatten
from pipeline.data.dataset import read_examples
from pipeline.runtime import dvc_files
from pipeline.runtime.atomic_files import sha256_of
from pipeline.runtime.import_closure import deciding
from pipeline.tracking import registry, runs


def tags_of(training: Mapping[str, Any], model_sha256: str, params: Params) -> dict[str, str]:
    """Return the tags that lead from a model back to its data, params and code.

    Args:
        training: content of the checkpoint's training.json.
        model_sha256: hash of the weights.
        params: all of params.yaml.
    """
    used = params.flat("ingest", "build") | flatten("finetune", training["params"])
    root = Path(__file__).parents[2]
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
    """Return DVC's hashes of the data set and of its raw sources, from `dvc.lock`.

    Raises:
        DataError: `dvc.lock` is cut off.
    """
    if not paths.DVC_LOCK.is_file():
        return {"dvc": "no dvc.lock: run without DVC"}
    if dvc_files.is_torn(paths.DVC_LOCK):
        raise DataError(f"{paths.DVC_LOCK}: is cut off; `image-captioning doctor` fixes this")
    stages = YAML(typ="safe", pure=True).load(paths.DVC_LOCK.read_text(encoding="utf-8")).get("stages", {})
    hashes: dict[str, str] = {}
    # dvc.lock keeps sources that are no longer used, so the data set decides which ones count.
    for source in sorted({source for e in read_examples(paths.DATASET / "train") for source in e.sources}):
        deps = stages.get(f"ingest@{source}", {}).get("deps", [])
        hashes |= {f"dvc.raw.{source}": d["md5"] for d in deps if Path(d["path"]) == paths.RAW / source}
    for out in stages.get("build", {}).get("outs", []):
        if Path(out["path"]) == paths.DATASET:
            hashes["dvc.dataset"] = out["md5"]
    return hashes


def _git_state() -> dict[str, str]:
    """Return the commit, and whether tracked files other than `dvc.lock` have uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){paths.DVC_LOCK}")
    except (OSError, subprocess.CalledProcessError):
        return {"git.commit": "none"}
    return {"git.commit": commit, "git.dirty": str(bool(dirty)).lower()}
