"""Compare what the service saw each week with the data set, and show how often people changed its captions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.dataset import read_examples
from pipeline.data.images import decode
from pipeline.runtime.atomic_files import swapped_in, write_json
from pipeline.runtime.entrypoint import Done
from pipeline.serving.corrections import Corrections
from pipeline.serving.edit_rate import EditRate, edit_rates
from pipeline.serving.watch import FOLDER, Seen, hash_of, made_by, read_week, week_of, write

if TYPE_CHECKING:
    from pipeline.serving.drift import Look

REPORT = FOLDER / "report.json"
TAG = "watch.last"  # of a version
_REFERENCE = paths.WORK / "watch"
_MOST = 500  # pictures of the data set to compare with


def watch(params: Params) -> Done:
    """Compare every complete week of the newest recorded version, write the report, and tag the version in MLflow.

    Returns:
        the last line to print, and the content of the report.

    Raises:
        ConfigError: nothing was recorded with today's settings, or the version can't caption as the service does.
        DataError: there is no validation split.
        TemporaryError: MLflow can't be reached.
    """
    from pipeline.serving import drift

    newest, weeks = _complete_weeks()
    if newest is None:
        raise ConfigError(
            f"{FOLDER}: has no complete week of a registered version; set serving.watch to true in params.yaml, restart"
            " the service, and come back next week"
        )
    name, version = newest
    key = _made_by(params, name, version)
    weeks = {week: same for week, seen in weeks.items() if (same := [one for one in seen if one.made_by == key])}
    if not weeks:
        raise ConfigError(
            f"{FOLDER}: no complete week was captioned by version {version} with evaluate.generation and"
            " evaluate.decoding as they are in params.yaml; restart the service, and come back next week"
        )
    found = drift.looks(weeks, _reference(params, name, version, key))
    rates = edit_rates(Corrections().counting(), name, version)
    changed = {one.week: one for one in rates}
    for look in found:
        mean, low, high = look.confidence
        people = f", people {_in_words(changed[look.week])}" if look.week in changed else ""
        print(
            f"watch: {look.week}: {look.pictures} pictures, confidence {mean:.2f} ({low:.2f} to {high:.2f}){people},"
            f" {'drift of ' + ' and '.join(look.alarms) if look.alarms else 'no drift'}"
        )
    line = _line(found, version)
    report = {
        "model": name,
        "version": version,
        "weeks": [{**asdict(one), "alarms": one.alarms} for one in found],
        "edit_rates": [asdict(one) for one in rates],
    }
    with swapped_in(REPORT) as (place,):
        write_json(place, report)
    _tag(name, version, f"{line}; people {_in_words(rates[-1])} in {rates[-1].week}" if rates else line)
    return Done(line, report)


def _complete_weeks() -> tuple[tuple[str, int] | None, dict[str, list[Seen]]]:
    """Return the newest recorded version (name and number), and its pictures of each week that is over.

    The weeks of older versions, which may be years, are not kept in memory.
    """
    current = week_of(datetime.now(UTC))
    newest: tuple[str, int] | None = None
    weeks: dict[str, list[Seen]] = {}
    for file in sorted(FOLDER.glob("*-W*.jsonl"), reverse=True):
        if file.stem >= current:
            continue
        seen = [one for one in read_week(file) if one.version is not None]
        if newest is None and seen:
            last = max(seen, key=lambda one: one.version or 0)
            newest = last.model, last.version or 0
        if ours := [one for one in seen if (one.model, one.version) == newest]:
            weeks[file.stem] = ours
    return newest, weeks


def _line(found: list[Look], version: int) -> str:
    """Return in one line whether there was an alarm, and the last one."""
    weeks = f"{len(found)} weeks of version {version}"
    if not (alarms := [look for look in found if look.alarms]):
        return f"{weeks}: no drift from the data set"
    last = alarms[-1]
    words = ", ".join(f"{word} {before:.0%} -> {now:.0%}" for word, before, now in last.words[:3])
    return f"{weeks}: drift of {' and '.join(last.alarms)} in {last.week} ({words})"


def _in_words(one: EditRate) -> str:
    return f"changed {one.rate:.0%} ({one.low:.0%} to {one.high:.0%}) of {one.judged} captions"


def _made_by(params: Params, name: str, version: int) -> str:
    from pipeline.tracking import registry, runs

    with runs.reachable():
        tags = registry.tags(runs.client(), name, version)
    return made_by(tags.get(registry.MODEL_SHA256), params.evaluate)


def _reference(params: Params, name: str, version: int, key: str) -> list[Seen]:
    """Caption pictures of the validation split, which trains no weights, as the service does; kept in `.work/watch`."""
    from pipeline.data.dataset import PictureReader
    from pipeline.tracking.captioners import load_captioner

    folder = paths.DATASET / "validation"
    examples = sorted(read_examples(folder) if folder.is_dir() else [], key=lambda one: one.sha256)[:_MOST]
    if not examples:
        raise DataError(f"{folder}: has no pictures to compare with; set build.validation in params.yaml")
    deciding = [name, version, key, [one.sha256 for one in examples]]
    kept = Path(hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32])
    if found := read_week(_REFERENCE / kept / "reference.jsonl"):
        return found
    captioner = load_captioner(f"models:/{name}/{version}", params)
    reader, size = PictureReader(folder), params.runtime.caption_batch_size
    seen: list[Seen] = []
    for start in range(0, len(examples), size):
        pictures = [
            captioner.prepare(decode(reader.read(example.file_name), params.ingest.max_pixels))
            for example in examples[start : start + size]
        ]
        averaged: list[Any] = []
        said = captioner.scored(
            pictures,
            [0] * len(pictures),
            count=1,
            beams=params.evaluate.beams,
            sampling=False,
            on_features=averaged.append,
        )
        seen += [
            Seen(hash_of(picture), name, version, captions[0].text, captions[0].score, features, key)
            for picture, captions, features in zip(pictures, said, averaged[0].numpy(), strict=True)
        ]
    with swapped_in(_REFERENCE / kept) as (place,):
        write(place / "reference.jsonl", seen)
    return seen


def _tag(name: str, version: int, line: str) -> None:
    from pipeline.tracking import registry, runs

    with runs.reachable():
        registry.note(runs.client(), name, version, {TAG: line})
