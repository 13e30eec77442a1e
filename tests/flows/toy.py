"""A toy workspace with the shape of ours: the real flows, DVC and git, and stages that take a moment and no model.

Its stages go through `pipeline.runtime.entrypoint`, so they have the locks, exit codes and ends of the
real ones. The environment variable WORKS says what they do in place of work, like `finetune=sleep build=75`. A JSON
file stands in for MLflow's database.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT, TINY, environment, run, set_params

GIT = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]

STAGE = '''
"""A stage of the toy workspace."""
import json, os, pathlib, sys, time
from pipeline.runtime import entrypoint
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.runtime.atomic_files import swapped_in, write_json
from pipeline.runtime.progress import progress_bar

NAME, SOURCE, TARGETS = {name!r}, {source!r}, {targets!r}

def misbehave():
    wanted = dict(word.split("=") for word in os.environ.get("WORKS", "").split())
    how = wanted.get(NAME, "")
    once = pathlib.Path(how.partition("@")[2]) if "@" in how else None
    if once and once.exists():
        return
    if once:
        once.touch()
    how = how.partition("@")[0]
    if how == "sleep":
        print(NAME + ": sleeps", flush=True)
        time.sleep(300)
    elif how == "bars":
        for _ in progress_bar(range(40), desc=NAME, unit=" steps"):
            time.sleep(0.1)
    elif how == "kill":
        os.kill(os.getpid(), 9)
    elif how:
        raise {{"65": DataError, "75": TemporaryError, "78": ConfigError}}[how](NAME + " was told to fail")

def run(params, args):
    item = args.source
    read = pathlib.Path(SOURCE.format(item=item))
    misbehave()
    text = "".join(sorted(file.read_text() for file in read.rglob("*.csv")) if read.is_dir() else [read.read_text()])
    if text.startswith("corrupt"):
        raise DataError(f"{{read}}: is corrupt; bring it again")
    with swapped_in(*(pathlib.Path(target.format(item=item)) for target in TARGETS)) as places:
        for target, place in zip(TARGETS, places):
            if target.endswith(".json"):
                write_json(place, {{"rows": {{"in": len(text.splitlines()), "kept": 1}}, "text": text}})
            else:
                place.mkdir(parents=True)
                (place / "all.csv").write_text(text)
    time.sleep(float(os.environ.get("WORKS_SECONDS", "0")))
    return f"{{len(text.splitlines())}} rows"

if __name__ == "__main__":
    arguments = lambda parser: parser.add_argument("source", nargs="?", default="")
    entrypoint.main(NAME, run, arguments, lambda args: NAME + args.source)
'''

STAGES = {
    "ingest": ("data/raw/{item}", ["data/ingest/{item}", "reports/ingest/{item}.json"]),
    "build": ("data/ingest", ["data/dataset", "reports/build.json"]),
    "finetune": ("data/dataset", ["models/finetune", "reports/finetune.json"]),
    "evaluate": ("models/finetune", ["reports/evaluate.json"]),
    "register": ("reports/evaluate.json", ["reports/register.json"]),
}

COMMAND = '''
"""Stands in for a command that asks MLflow."""
import json, os, pathlib
from pipeline.config import paths
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, write_json

# Where MLflow's own file would be.
STORE = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
REGISTRY = pathlib.Path(STORE.removeprefix("sqlite:///") + ".json")

def registry():
    return read_json(REGISTRY) if REGISTRY.exists() else {{"versions": [], "champion": None, "tags": {{}}}}

{body}

if __name__ == "__main__":
    entrypoint.main({name!r}, run, arguments)
'''

MODEL_STATUS = """
def arguments(parser):
    pass

def run(params, args):
    return entrypoint.Done("status", {"model": "m", "version": 1,
        "tracking_uri": "sqlite:///mlflow.db", "experiment_id": "1", "run_id": "r", "run_name": "git-1",
        "metrics": {"CIDEr-D": 1.5}, "champion": {"version": 3, "metrics": {"CIDEr-D": 1.25}, "same_test": True}})
"""


REGISTER = """
def arguments(parser):
    pass

def run(params, args):
    return "is registered"
"""

# As many rows as the champion's are no gain; the number of a version is that of its state of the data.
PROMOTE = """
import subprocess, sys, time

def arguments(parser):
    parser.add_argument("command", choices=["promote", "watch"])
    parser.add_argument("--challenger")
    parser.add_argument("--unless-rolled-back", action="store_true")
    parser.add_argument("--since", type=float)

def run(params, args):
    if args.command == "watch":  # the report is the test's
        subprocess.run([sys.executable, "-m", "flows.steps.drift_event"], check=True)
        return entrypoint.Done("compared", read_json(pathlib.Path("data/watch/report.json")))
    known = registry()
    score = read_json(paths.EVALUATE_REPORT)["rows"]["in"]
    if score not in known["versions"]:
        known["versions"].append(score)
    champion = known["champion"]
    better = champion is None or score > champion
    decision = "first" if champion is None else "promoted" if better else "kept"
    if better and params.promote.approval == "always":
        decision = "waits"
    elif better:
        known["champion"] = score
        known["last"] = [time.time(), decision, champion]
    elif score == champion and known["last"][0] >= args.since:  # it was killed before it could tell
        _, decision, champion = known["last"]
    write_json(REGISTRY, known)
    report = {"decision": decision, "model": "m", "challenger": score, "champion": champion,
        "reasons": [f"it has {score} rows"], "metrics": {"challenger": {"rows": score},
        "champion": {"rows": champion} if champion else {}}}
    return entrypoint.Done(f"decided: {decision}", report)
"""

RETENTION = """
COMMIT = "commit"
CHAMPION = "champion"

def arguments(parser):
    parser.add_argument("what")
    parser.add_argument("--commit")
    parser.add_argument("--branch")
    parser.add_argument("--since", type=float)
    parser.add_argument("--keep", type=int)

def run(params, args):
    known, result = registry(), None
    if args.what == "tag-version":
        known["tags"][str(read_json(paths.EVALUATE_REPORT)["rows"]["in"])] = args.commit
    if args.what == "start":
        result = f"models:/m/{known['champion']}" if known["champion"] else "scratch"
    if args.what == "delete-old-versions":
        kept = [v for v in known["versions"] if v in known["versions"][-args.keep:] or v == known["champion"]]
        result = {"commits": [known["tags"][str(v)] for v in kept]}
    write_json(REGISTRY, known)
    return entrypoint.Done(args.what + " is done", result)
"""


def command(name: str, body: str) -> str:
    return COMMAND.format(name=name, body=body)


def dvc_yaml() -> str:
    stages = ["stages:"]
    for name, (source, targets) in STAGES.items():
        outs = "".join(f"      - {target}:\n          persist: true\n" for target in targets)
        if name == "ingest":
            outs = outs.replace("{item}", "${item}").replace("      ", "        ")
            stages.append(
                "  ingest:\n    foreach: ${ingest.sources}\n    do:\n"
                '      cmd: python -m pipeline.works.ingest "${item}"\n'
                f"      deps:\n        - data/raw/${{item}}\n        - pipeline/works/ingest.py\n      outs:\n{outs}"
            )
        else:
            params = "    params: [finetune]\n" if name == "finetune" else ""
            stages.append(
                f"  {name}:\n    cmd: python -m pipeline.works.{name}\n"
                f"    deps:\n      - {source}\n      - pipeline/works/{name}.py\n"
                f"{params}    outs:\n{outs}"
            )
    return "\n".join(stages)


def build(folder: Path) -> Path:
    """Make the workspace in a folder, with all its stages up to date and committed."""
    for package in ("pipeline", "flows"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline/works").mkdir()
    (folder / "pipeline/works/__init__.py").write_text("")
    for name, (source, targets) in STAGES.items():
        (folder / f"pipeline/works/{name}.py").write_text(STAGE.format(name=name, source=source, targets=targets))
    for name, body in {
        "tracking/model_status": MODEL_STATUS,
        "register": REGISTER,
        "cli": PROMOTE,
        "tracking/retention": RETENTION,
    }.items():
        (folder / f"pipeline/{name}.py").write_text(
            command("promote" if name == "cli" else name.rpartition("/")[2], body)
        )
    (folder / "dvc.yaml").write_text(dvc_yaml())
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / ".gitignore", folder)
    shutil.copy(ROOT / ".dvcignore", folder)
    set_params(folder, {**TINY, "ingest.sources": ["mine"], "flow.retry_seconds": 0.1, "flow.wait_minutes": 1})
    (folder / "data/raw/mine").mkdir(parents=True)
    (folder / "data/raw/mine/captions.csv").write_text("a.jpg,a boat\n")
    for words in (
        [*GIT, "init", "-q", "-b", "main"],
        ["dvc", "init", "-q"],
        ["dvc", "config", "core.analytics", "false"],
        ["dvc", "add", "-q", "data/raw/mine"],
        ["dvc", "repro", "-q"],
        [*GIT, "add", "-A"],
        [*GIT, "commit", "-qm", "the workspace"],
    ):
        done = run(folder, *words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return folder


def copy(toy_workspace: Path, folder: Path) -> Path:
    """A workspace of its own for a test."""
    shutil.copytree(toy_workspace.parent, folder.parent, symlinks=True, dirs_exist_ok=True)
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        [*GIT, *words], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    ).stdout.strip()
