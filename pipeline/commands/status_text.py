"""The state of the workspace (see `status`) as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.config.sections.finetune import CREATED

_LABEL = 13  # columns
_WIDTH = 110
_DEMO_NOTE = (
    "This model started from git-demo, which knows only drawings: it cannot caption photographs. For photographs,"
    ' fine-tune on your own pictures from a checkpoint trained on photos: README.md, "Your own pictures".'
)
_DECISIONS = {
    "first": "promoted",
    "promoted": "promoted",
    "stays": "stayed champion",
    "replaced": "replaced",
    "kept": "not promoted",
    "waits": "waits for approval",
}

Part = Mapping[str, Any]


def render(status: Part) -> str:
    """Return the text of what `status.read_status` returned."""
    lines = [
        *_block("Workspace", _workspace(status)),
        *(_block("Params", _wrap(status["params"]["problem"])) if status["params"] else ()),
        *_block("Faults", _faults(status["faults"])),
        "",
        *_block("Data", _data(status["data"])),
        "",
        *_block("Model", _model(status["model"])),
        "",
        *_block("Registry", _registry(status["registry"], status["model"])),
        *_block("Last runs", _runs(status["registry"])),
        *_block("Schedule", _schedule(status["schedule"])),
        *(_block("Stale", _stale(status["stale"])) if status["stale"] else ()),
        "",
        *([*_wrap(_DEMO_NOTE, width=_WIDTH), ""] if status["demo_model"] else []),
        *_block("Next:", _next(status["next"])),
    ]
    # Captions and names of runs come from strangers, and control characters could repaint the terminal.
    return "\n".join("".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in line) for line in lines)


def _block(label: str, lines: Iterable[str]) -> Iterator[str]:
    for i, line in enumerate(lines):
        yield f"{'' if i else label:<{_LABEL}}{line}".rstrip()


def _workspace(status: Part) -> Iterator[str]:
    git = status["git"]
    commit = f"commit {git['commit']}{', with uncommitted changes' if git['changed'] else ''}" if git else "no commit"
    yield f"{status['workspace']} ({commit})"
    running = status["running"]
    yield f"running now: {running['name']} (process {running['pid']})" if running else "running now: nothing"


def _faults(faults: Iterable[str]) -> Iterator[str]:
    for fault in faults:
        yield from _wrap(f"{fault}; `image-captioning doctor` fixes this")


def _data(data: Part) -> Iterator[str]:
    if "problem" in data:
        yield from _wrap(data["problem"])
        return
    for source in data["sources"]:
        name = f"data/raw/{source['name']}"
        if "pictures" in source:
            yield f"{name}: {source['pictures']:,} pictures, {source['captions']:,} captions"
        elif source["pulled"]:
            yield f"{name}: not ingested yet"
        else:
            yield f"{name}: {'tracked by DVC, not pulled' if source['tracked'] else 'not found'}"
    if data["splits"] is None:
        yield "no data set yet"
        return
    splits = ", ".join(f"{name} {count:,}" for name, count in data["splits"].items())
    yield f"data set: {splits} pictures; {data['captions']:,} captions (reports/data.html)"
    aside = data["set_aside"]
    yield f"set aside: {aside['pictures']:,} pictures, {aside['captions']:,} captions (reports/set_aside.csv)"


def _model(model: Part | None) -> Iterator[str]:
    if model is None:
        yield "none yet"
        return
    if "problem" in model:
        yield from _wrap(model["problem"])
        return
    scratch = model["checkpoint"] in CREATED
    yield f"{model['folder']}, {'trained from ' if scratch else 'fine-tuned from '}{model['checkpoint']}"
    columns = list(next(iter(model["metrics"].values()), {}))
    yield f"{model['test_pictures']:>5,} test pictures  " + "".join(f"{name:>10}" for name in columns)
    for system, scores in model["metrics"].items():
        yield f"{system.replace('_', ' '):>19}  " + "".join(f"{scores[name]:10.3f}" for name in columns)
    if example := model["example"]:
        yield f"example: {example['picture']}"
        for who in ("before", "after", "people"):
            if example[who] is not None:
                yield f"{who:>8}: {_clip(example[who], _WIDTH - _LABEL - 10)}"
    yield f"more examples: {model['gallery']} (open it in a browser)"


def _registry(registry: Part | None, model: Part | None) -> Iterator[str]:
    if registry is None or not registry.get("versions"):
        yield from _wrap(registry["problem"]) if registry and "problem" in registry else ["no registered version yet"]
        return
    champion, count = registry["champion"], registry["versions"]
    named = f"the champion is version {champion}" if champion else "there is no champion"
    yield f"{count} version{'s' if count > 1 else ''} in MLflow at {registry['address']}; {named}"
    here = (model or {}).get("model_sha256")
    for version in registry["shown"]:
        marks = [
            "champion" if version["version"] == champion else "",
            "this workspace's model" if here and version["model_sha256"] == here else "",
            "rolled back" if version["rolled_back"] else "",
        ]
        marked = f" ({', '.join(filter(None, marks))})" if any(marks) else ""
        yield f"models:/{registry['model']}/{version['version']}  {_when(version['created'])}{marked}"
        if version["decision"]:
            decision = _DECISIONS.get(version["decision"], version["decision"])
            yield from _wrap(f"{decision}: {version['reasons'] or ''}", indent="    ")


def _runs(registry: Part | None) -> Iterator[str]:
    runs = (registry or {}).get("runs")
    if not runs:
        yield "unknown" if registry and "problem" in registry else "none yet"
        return
    for run in runs:
        yield f"{run['name']:<24}  {_when(run['started'])}  {run['status']}"


def _schedule(schedule: Part | None) -> Iterator[str]:
    if schedule is None:
        yield 'not scheduled: `image-captioning serve --cron "0 3 * * 1"` retrains every Monday at 3'
    elif "problem" in schedule:
        yield from _wrap(schedule["problem"])
    else:
        yield (
            f"{schedule['cron']} ({schedule['timezone']}), deployment {schedule['deployment']};"
            f" pages at {schedule['pages']}"
        )


def _stale(stale: Part) -> Iterator[str]:
    if "problem" in stale:
        yield from _wrap(stale["problem"])
    else:
        yield ", ".join(stale["stages"]) or "nothing: every stage is up to date"


def _next(steps: Iterable[Part]) -> Iterator[str]:
    commands = list(steps)
    width = max((len(step["command"]) for step in commands), default=0)
    for step in commands:
        yield f"{step['command']:<{width}}  {step['why']}"


def _when(time: str) -> str:
    return time[:16].replace("T", " ") + " UTC"


def _clip(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."


def _wrap(text: str, indent: str = "", width: int = _WIDTH - _LABEL) -> list[str]:
    # Commands, paths and names must stay whole, to be copied.
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
