"""Captions and references as COCO has them, for other tools to score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.runtime.atomic_files import write_json

_RESULTS, _ANNOTATIONS = "coco_results.json", "coco_annotations.json"


def write(folder: Path, lines: Sequence[dict], system: str) -> None:
    """Write a system's captions as COCO results and the references as COCO annotations.

    Args:
        folder: the destination.
        lines: of captions.jsonl.
        system: the name of the system.
    """
    numbered = list(enumerate(lines, start=1))
    results = [{"image_id": number, "caption": line["captions"][system]} for number, line in numbered]
    references = [(number, caption) for number, line in numbered for caption in line["references"]]
    write_json(folder / _RESULTS, results)
    write_json(
        folder / _ANNOTATIONS,
        {
            "images": [{"id": number, "file_name": line["file_name"]} for number, line in numbered],
            "annotations": [{"id": k, "image_id": n, "caption": c} for k, (n, c) in enumerate(references, start=1)],
        },
    )
