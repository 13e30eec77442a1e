"""A review queue goes to an annotation tool and comes back as a source, with nothing lost."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import build, ingest
from pipeline.config import params
from pipeline.config.errors import ConfigError, DataError
from pipeline.data.dataset import Example, read_examples
from pipeline.data.images import identity
from pipeline.data.split import SPLITS
from pipeline.models.scored import Scored
from pipeline.runtime.atomic_files import read_json
from pipeline.serving import review_export
from pipeline.serving.bulk_work import NamedModel
from pipeline.serving.corrections import Corrections
from pipeline.serving.raw_pictures import raw_picture
from pipeline.serving.review_export import Format, export
from tests.app.conftest import data_set
from tests.conftest import set_params

__all__ = ["data_set"]  # a fixture
NASTY = ['a "red" car 🚗', "<b>bold</b> & 'quoted'", "größer, 日本語", "two\nlines"]


def find() -> NamedModel:
    """A captioner that is the less sure the later it sees a picture."""
    seen = 0

    def scored(pictures: list[Any], *words: Any, **options: Any) -> list[list[Scored]]:
        nonlocal seen
        found = [[Scored(f"guess {seen + number}", -0.1 * (seen + number))] for number in range(len(pictures))]
        seen += len(pictures)
        return found

    captioner = SimpleNamespace(prepare=lambda picture: picture, scored=scored)
    return NamedModel("models:/toy@champion", lambda: captioner)  # type: ignore[arg-type, return-value]


def exported(kind: Format, count: int = 12) -> list[dict[str, Any]]:
    export(params.load(), kind, Path("queue"), count, find)
    return list(read_json(Path("queue") / {"label-studio": "tasks.json", "argilla": "records.json"}[kind]))


def of_label_studio(tasks: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """Annotate as a person does, and export as JSON: https://labelstud.io/guide/export (raw JSON format)."""
    done = []
    for number, (task, text) in enumerate(zip(tasks, texts, strict=True), start=1):
        (region,) = task["predictions"][0]["result"]
        result = [{**region, "value": {"text": [text]}, "origin": "manual"}]
        annotation = {"id": number, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False}
        done.append({"id": number, "annotations": [annotation], **task, "meta": {}})
    return done


def of_label_studio_minimal(tasks: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """The same in the format JSON-MIN, as the converter of label-studio-sdk 2.1.2 writes it."""
    return [
        {**task["data"], "id": number, "caption": text, "annotator": "a@b.c", "annotation_id": number}
        for number, (task, text) in enumerate(zip(tasks, texts, strict=True), start=1)
    ]


def of_argilla(records: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """Respond as a person does, and export: https://docs.argilla.io/latest/how_to_guides/import_export."""
    responses = [{"caption": [{"value": text, "user_id": "3f1d6e4e-0d3c-4c0c-9d5e-0f6f4b2a1c11"}]} for text in texts]
    return [
        {**record, "responses": response, "status": "completed"}
        for record, response in zip(records, responses, strict=True)
    ]


def examples() -> dict[str, tuple[str, Example]]:
    return {e.sha256: (split, e) for split in SPLITS for e in read_examples(Path("data/dataset") / split)}


@pytest.mark.parametrize(
    ("kind", "annotate"),
    [
        ("label-studio", of_label_studio),
        ("label-studio", of_label_studio_minimal),
        ("argilla", of_argilla),
    ],
)
def test_a_queue_comes_back_with_every_text_at_its_picture_and_every_picture_in_its_split(
    data_set: Path, kind: Format, annotate: Callable[..., Any]
) -> None:
    before = examples()
    queue = exported(kind)
    names = sorted(file.stem for file in Path("queue/pictures").iterdir())
    assert len(queue) == len(names) == 12
    for file in Path("queue/pictures").iterdir():
        assert identity(file.read_bytes()) == file.stem, "the raw bytes, so that the picture is the same one"
    texts = [*NASTY, *(f"what a person says of picture {number}" for number in range(8))]
    shutil.move("queue", "data/raw/queue")
    file = {"label-studio": "tasks.json", "argilla": "records.json"}[kind]
    (Path("data/raw/queue") / file).write_text(json.dumps(annotate(queue, texts)), encoding="utf-8")

    set_params(data_set, {"ingest.sources": ["sample", "queue"]})
    ingest.run(params.load(), Namespace(source="queue"))
    build.run(params.load(), Namespace())
    after = examples()
    assert {sha256: split for sha256, (split, _) in after.items()} == {s: split for s, (split, _) in before.items()}
    hashes = [entry["data"]["sha256"] if kind == "label-studio" else entry["id"] for entry in queue]
    for sha256, text in zip(hashes, texts, strict=True):
        assert " ".join(text.split()) in [" ".join(caption.split()) for caption in after[sha256][1].captions]
        assert set(before[sha256][1].captions) <= set(after[sha256][1].captions)
    assert not any("guess" in caption for _, e in after.values() for caption in e.captions), "predictions do not count"


def test_the_least_sure_come_first_with_the_models_words_and_what_was_reviewed_stays_out(data_set: Path) -> None:
    reviewed = read_examples(Path("data/dataset/train"))[0]
    Corrections().save("ann", "add", raw_picture(reviewed), caption="hers")
    queue = exported("label-studio", count=3)
    assert [task["predictions"][0]["model_version"] for task in queue] == ["models:/toy@champion"] * 3
    scores = [task["predictions"][0]["score"] for task in queue]
    assert scores == sorted(scores)
    assert all(0 <= score <= 1 for score in scores)
    assert reviewed.sha256 not in {task["data"]["sha256"] for task in exported_all()}


def exported_all() -> list[dict[str, Any]]:
    shutil.rmtree("queue")
    return exported("label-studio", count=1000)


def test_raw_pictures_are_read_of_the_chosen_ones_only(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(example: Example) -> bytes:
        read.append(example.sha256)
        return raw_picture(example)

    monkeypatch.setattr(review_export, "raw_picture", counted)
    exported("argilla", 2)
    assert len(read) == 2, "not of all that the model has captioned"


def test_a_folder_that_exists_is_not_touched_and_an_empty_queue_is_one_line(data_set: Path) -> None:
    Path("queue").mkdir()
    with pytest.raises(ConfigError, match="--out queue: exists already"):
        exported("argilla")
    Path("queue").rmdir()
    shutil.rmtree("data/dataset")
    with pytest.raises(DataError, match="there is nothing to export"):
        exported("argilla")
    assert not Path("queue").exists()
