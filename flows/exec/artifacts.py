"""Prefect artifacts of a run: counts, metrics, progress and links. They contain no images or captions."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipeline.config import paths
from pipeline.runtime.atomic_files import read_json

_MLFLOW_HERE = "http://127.0.0.1:5000"  # where `image-captioning ui` shows the runs of this workspace


class Progress:
    """Show progress bars as progress artifacts of the running task.

    `prefect deployment run --watch` prints each update, so a bar is updated only when its percentage changed, and at
    most once per interval; 100 % is always shown.
    """

    def __init__(self, seconds: float) -> None:
        """Create it; `seconds` is the minimum interval between two updates of a bar."""
        self._seconds = seconds
        self._ids: dict[str, Any] = {}
        self._shown: dict[str, tuple[int, float]] = {}

    def __call__(self, name: str, percent: int, line: str) -> None:
        """Show the progress of a bar."""
        now = time.monotonic()
        before, then = self._shown.get(name, (-1, -math.inf))
        if percent != before and (percent == 100 or now - then >= self._seconds):
            self._shown[name] = percent, now
            _attempt(lambda: self._show(name, percent, line))

    def _show(self, name: str, percent: int, line: str) -> None:
        if name in self._ids:
            update_progress_artifact(self._ids[name], progress=float(percent), description=line)
        else:
            self._ids[name] = create_progress_artifact(float(percent), key=_key(name, "progress"), description=line)


def of_stage(stage: str) -> None:
    """Show the report of a stage, if the stage writes one with counts."""
    if stage == "ingest":
        for report in sorted(paths.INGEST_REPORTS.glob("*.json")):
            account(f"ingest {report.stem}", report)
    elif stage == "build":
        account("build", paths.BUILD_REPORT)


def account(name: str, report: Path) -> None:
    """Show the counts of a report as a table."""
    rows = [
        {"what": " / ".join(keys).replace("_", " "), "count": value}
        for keys, value in _leaves(read_json(report))
        if isinstance(value, int)
    ]
    _attempt(lambda: create_table_artifact(rows, key=_key(name, "account"), description=f"Counts in `{report}`"))


def figures(standing: Mapping[str, Any]) -> None:
    """Show a model's test scores next to the champion's, and a link to its MLflow run.

    Args:
        standing: the result of `pipeline.tracking.model_status`.
    """
    champion = standing["champion"]
    beside = champion["metrics"] if champion else {}
    rows = []
    for name, value in standing["metrics"].items():
        row = {"figure": name, "this model": f"{value:.4f}"}
        if name in beside:
            row["champion"] = f"{beside[name]:.4f}"
            if champion["same_test"]:
                row["change"] = f"{value - beside[name]:+.4f}"
        rows.append(row)
    words = f"Test figures of version {standing['version']} of {standing['model']}"
    if champion:
        same = "on the same test pictures" if champion["same_test"] else "on its own test pictures"
        words += f" beside the champion, version {champion['version']}, measured {same}"
    place = standing["tracking_uri"] if standing["tracking_uri"].startswith("http") else _MLFLOW_HERE
    link = f"{place}/#/experiments/{standing['experiment_id']}/runs/{standing['run_id']}"
    _attempt(lambda: create_table_artifact(rows, key="figures", description=words))
    _attempt(
        lambda: create_link_artifact(
            link,
            link_text=f"run {standing['run_name']} in MLflow",
            key="mlflow-run",
            description="" if place != _MLFLOW_HERE else "`image-captioning ui` in the workspace opens this page",
        )
    )


def words(name: str, markdown: str, description: str) -> None:
    """Show a Markdown text."""
    _attempt(lambda: create_markdown_artifact(markdown, key=_key(name), description=description))


def _leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, (*keys, str(key)))
    else:
        yield keys, value


def _key(*names: str) -> str:
    """Return a valid Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(names).lower()).strip("-")


def _attempt(show: Callable[[], object]) -> None:
    """Show an artifact. A failure is only logged: an unreachable Prefect server must not stop the work."""
    try:
        show()
    except Exception as error:
        get_run_logger().warning("not shown in Prefect's UI: %s", error)
