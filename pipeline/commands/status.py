"""The state of the workspace on one screen: data, model, versions, last runs, schedule, and what to do next.

Everything is optional: a fresh clone has nothing yet, a stage that was cut off leaves some files out, and MLflow may be
unreachable. Each part then says so in one line. Nothing is created or changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.commands import doctor, status_text
from pipeline.config import paths
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.params import Params, load
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.atomic_files import read_json, read_json_lines
from pipeline.runtime.entrypoint import Done
from pipeline.tracking.decision import WAITS

DEMO_CHECKPOINT = "models/git-demo"
_DEMO_SOURCES = ["sample"]
_COLUMNS = ("BLEU-4", "ROUGE-L", "CIDEr-D")
_RUNS = 5
_VERSIONS = 5
_DVC_SECONDS = 300.0

Part = dict[str, Any]

_UNKNOWN: Part = {"problem": "unknown until params.yaml is right"}


def show_status(*, as_json: bool = False, with_dvc: bool = False) -> Done:
    """Print the state of the workspace, and return it.

    Args:
        as_json: whether to print JSON instead of text.
        with_dvc: whether to ask DVC which stages are stale, which takes seconds.

    Raises:
        ConfigError: this is not the root of a workspace.
    """
    status = read_status(with_dvc)
    print(json.dumps(status, indent=2, ensure_ascii=False) if as_json else status_text.render(status))
    return Done("done", status)


def read_status(with_dvc: bool = False) -> Part:
    """Return the state of the workspace as JSON. A part that can't be read has the key `problem`.

    Raises:
        ConfigError: this is not the root of a workspace.
    """
    params, problem = _params()
    status: Part = {
        "workspace": os.fsencode(Path.cwd()).decode(errors="replace"),
        "git": _git(),
        "running": _running(),
        "faults": doctor.visible_faults(),
        "params": {"problem": problem} if problem else None,
        "data": _part(lambda: _data(params), "reports of the data") if params else _UNKNOWN,
        "model": _part(_model, "reports of the model"),
        "registry": _read_registry(params) if params else _UNKNOWN,
        "schedule": _part(_schedule, paths.SCHEDULE),
        "stale": _part(_stale, "answer of `dvc status`") if with_dvc else None,
    }
    status["demo_model"] = (status["model"] or {}).get("checkpoint") == DEMO_CHECKPOINT
    status["next"] = [{"command": command, "why": why} for command, why in islice(_next_steps(params, status), 2)]
    return status


def _params() -> tuple[Params | None, str | None]:
    """Return the params, or what is wrong with them: in a clone without `dvc pull`, git-demo is missing."""
    try:
        return load(), None
    except ConfigError as error:
        if not paths.PARAMS.is_file():
            raise
        return None, str(error)


def _part(read: Callable[[], Part | None], source: object) -> Part | None:
    try:
        return read()
    except PipelineError as error:
        return {"problem": str(error)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # Half-written or from another version; what ran last knows how to write it again.
        return {"problem": f"the {source} can't be read ({type(error).__name__}: {error}); run `dvc repro`"}


def _git() -> Part | None:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "--short", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository or no commit
        return None


def _running() -> Part | None:
    claim = workspace_lock.holder()
    return {"name": claim.who, "pid": process_identity.pid_of(claim.process)} if claim else None


def _data(params: Params) -> Part:
    sources = [_source(name) for name in params.ingest.sources]
    if not paths.BUILD_REPORT.is_file():
        return {"sources": sources, "splits": None}
    report = read_json(paths.BUILD_REPORT)
    return {
        "sources": sources,
        "splits": dict(report["pictures"]["kept"]),
        "captions": sum(report["captions"]["kept"].values()),
        "set_aside": {kind: sum(report[kind]["set_aside"].values()) for kind in ("pictures", "captions")},
    }


def _source(name: str) -> Part:
    """Return the counts of a source, and whether its files are here (`pulled`) or at least tracked by DVC."""
    folder, report = paths.RAW / name, paths.INGEST_REPORTS / f"{name}.json"
    source: Part = {"name": name, "pulled": folder.is_dir(), "tracked": Path(f"{folder}.dvc").is_file()}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        counts = read_json(report)
        source["pictures"] = counts["files"]["pictures_kept"]
        source["captions"] = counts["rows"]["captions_kept"]
    return source


def _model() -> Part | None:
    if not paths.EVALUATE_REPORT.is_file() or not paths.TRAINING.is_file():
        return None
    report = read_json(paths.EVALUATE_REPORT)
    return {
        "folder": str(paths.MODEL),
        "checkpoint": read_json(paths.TRAINING)["checkpoint"],
        "model_sha256": _registered_sha256(),
        "test_pictures": report["pictures"],
        "metrics": {
            system: {name: scores[name] for name in _COLUMNS}
            for system, scores in report.items()
            if isinstance(scores, Mapping)
        },
        "example": _example(),
        "gallery": str(paths.GALLERY),
    }


def _registered_sha256() -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(paths.REGISTER_REPORT)["model_sha256"])
    return None


def _example() -> Part | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        for line in islice(read_json_lines(paths.CAPTIONS), 1):
            captions = line["captions"]
            return {
                "picture": line["file_name"],
                "before": captions.get("before_finetuning"),
                "after": captions["model"],
                "people": line["references"][0],
            }
    return None


def _read_registry(params: Params) -> Part | None:
    try:
        return _registry(params)
    except PipelineError as error:
        return {"problem": str(error)}
    except Exception as error:  # of any kind: MLflow does not wrap those of a damaged database
        why = (str(error).splitlines() or [""])[0]
        return {
            "problem": f"MLflow can't be read ({type(error).__name__}: {why}); check MLFLOW_TRACKING_URI or mlflow.db"
        }


def _registry(params: Params) -> Part | None:
    """Return the versions and the last runs; None if MLflow has no database yet."""
    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlflow.db").is_file():
        return None
    from pipeline.tracking import decision, registry, runs

    name = params.register_.model
    with runs.reachable():
        store = runs.client()
        versions = registry.versions_with_tags(store, name)
        champion = registry.champion(store, name)
        experiment = store.get_experiment_by_name(params.register_.experiment)
        found = (
            store.search_runs([experiment.experiment_id], max_results=_RUNS, order_by=["attributes.start_time DESC"])
            if experiment
            else []
        )
    shown = versions[-_VERSIONS:] + [v for v in versions[:-_VERSIONS] if v.number == champion]
    return {
        "address": runs.shown(runs.uri()),
        "model": name,
        "versions": len(versions),
        "champion": champion,
        "shown": [
            {
                "version": version.number,
                "created": _time(version.created),
                "model_sha256": version.tags.get(registry.MODEL_SHA256),
                "decision": version.tags.get(decision.DECISION),
                "reasons": version.tags.get(decision.REASONS),
                "rolled_back": registry.ROLLED_BACK in version.tags,
            }
            for version in sorted(shown, key=lambda version: -version.number)
        ],
        "runs": [_run(run) for run in found],
    }


def _run(run: Any) -> Part:
    status, tags = run.info.status.lower(), run.data.tags
    here = tags.get("host") == socket.gethostname()
    if status == "running" and here and "process" in tags and not process_identity.is_alive(tags["process"]):
        status = "interrupted"
    return {
        "name": run.info.run_name or run.info.run_id,
        "started": _time(run.info.start_time / 1000),
        "status": status,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")


def _schedule() -> Part | None:
    if not paths.SCHEDULE.is_file():
        return None
    schedule: Part = read_json(paths.SCHEDULE)
    if not process_identity.is_alive(schedule["process"]):
        return None
    return {key: schedule[key] for key in ("cron", "timezone", "address", "pages", "deployment", "process")}


def _stale() -> Part:
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DVC_SECONDS)
    except subprocess.TimeoutExpired:
        return {"problem": f"`dvc status` took longer than {_DVC_SECONDS:.0f} s; run it by itself"}
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or ["`dvc status` failed"])[-1]}
    return {"stages": sorted(json.loads(done.stdout or "{}"))}


def _next_steps(params: Params | None, status: Part) -> Iterator[tuple[str, str]]:
    """Yield the commands that make sense now, each with its reason, the most useful first."""
    if status["running"]:
        yield "image-captioning ui", "follow the training that is running"
        return
    if status["faults"]:
        yield doctor.NAME, f"fix the fault{'s' if len(status['faults']) > 1 else ''} named above"
    if params is None:
        if not Path(DEMO_CHECKPOINT).is_dir() and Path(f"{DEMO_CHECKPOINT}.dvc").is_file():
            yield "make setup", "fetch the sample pictures and git-demo"
        else:
            yield "image-captioning status", "after you have corrected params.yaml"
        return
    if broken := next((name for name in ("data", "model") if "problem" in (status[name] or {})), None):
        yield "dvc repro", f"bring the {broken} up to date"
        return
    is_demo = list(params.ingest.sources) == _DEMO_SOURCES and params.finetune.checkpoint == DEMO_CHECKPOINT
    missing = [source for source in status["data"]["sources"] if not source["pulled"]]
    if missing and not is_demo:
        for source in missing:
            folder = paths.RAW / source["name"]
            if source["tracked"]:
                yield f"dvc pull {folder}", "fetch its files from the remote"
            else:
                yield f"dvc add {folder}", "after you have put pictures and captions there (README.md)"
        return
    if status["model"] is None or status["model"]["model_sha256"] is None:
        yield "make demo" if is_demo else "dvc repro", "run the whole loop: data, training, evaluation, registration"
        return
    yield from _steps_with_model(status)


def _steps_with_model(status: Part) -> Iterator[tuple[str, str]]:
    registry = status["registry"]
    if registry and "problem" in registry:
        yield "image-captioning status", "once MLflow can be reached"
        return
    hashes = {version["model_sha256"] for version in registry["shown"]} if registry else set()
    if status["model"]["model_sha256"] not in hashes:
        yield "make register", "MLflow does not have this workspace's model"
        return
    newest = registry["shown"][0]
    undecided = newest["version"] != registry["champion"] and newest["decision"] is None and not newest["rolled_back"]
    if undecided:
        yield "image-captioning promote", f"decide whether version {newest['version']} becomes the champion"
    if newest["decision"] == WAITS and not newest["rolled_back"]:
        number = newest["version"]
        yield f"image-captioning promote --approve {number}", f"version {number} waits for approval"
    if status["demo_model"]:
        yield "image-captioning ui", "look at runs, metrics and versions in MLflow"
        return
    yield "image-captioning caption PHOTO.jpg", "caption a photo"
    if not status["schedule"]:
        yield 'image-captioning serve --cron "0 3 * * 1"', "retrain every Monday at 3"
