"""What evaluate shows of the test pictures: the gallery, and the contact sheet for `dvc plots`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.config import paths
from pipeline.data.dataset import PictureReader
from pipeline.data.images import data_url
from pipeline.evaluation import architectures, gallery, scores_report
from pipeline.evaluation.attention_maps import WordMap, word_maps

_LOOKED = 12  # pictures of the gallery with attention maps
_PLOTTED = 12  # pictures on the contact sheet
_SIDE = 320  # pixels of a picture in the gallery


@dataclass(frozen=True)
class Shown:
    """What the pages are about.

    Attributes:
        model: the name of the model in the scores.
        before: the name of the checkpoint before fine-tuning; None if there was none.
        pictures: at most so many stand in the gallery.
    """

    model: str
    before: str | None
    pictures: int


def write_gallery(
    file: Path,
    lines: Sequence[dict[str, Any]],
    report: Mapping[str, Any],
    per_picture: Mapping[str, Sequence[float]],
    shown: Shown,
    table: Sequence[architectures.Row],
    attending: Mapping[str, Path],
) -> None:
    """Write the gallery of the pictures with the most telling scores.

    Args:
        file: the page to write.
        lines: the lines of captions.jsonl.
        report: the content of evaluate.json.
        per_picture: the headline score of each picture, by system.
        shown: what the page is about.
        table: the table of architectures; empty if none are compared.
        attending: the folders of the models that can say where they looked.
    """
    reader = PictureReader(paths.DATASET / "test")
    scores = per_picture[shown.model]
    gains = [score - per_picture[shown.before][i] if shown.before else 0.0 for i, score in enumerate(scores)]
    chosen = gallery.select(scores, gains, shown.pictures)
    looked = _looked(attending, [lines[i] for i in chosen[:_LOOKED]], reader)
    cards = [
        gallery.Card(
            name=lines[i]["file_name"],
            picture=data_url(reader.read(lines[i]["file_name"]), _SIDE),
            references=lines[i]["references"],
            captions=lines[i]["captions"],
            scores={system: values[i] for system, values in per_picture.items()},
            looked=looked.get(lines[i]["file_name"], {}),
        )
        for i in chosen
    ]
    page = gallery.render(
        cards,
        {system: {name: report[system][name] for name in report[system]["intervals_95"]} for system in per_picture},
        {system: report[system]["intervals_95"] for system in per_picture},
        len(lines),
        report["tokenizer"],
        "Captions of the test split",
        shown.model,
        shown.before,
        table,
        scores_report.named_table(report),
    )
    file.write_text(page, encoding="utf-8")


def _looked(
    attending: Mapping[str, Path], lines: Sequence[dict[str, Any]], reader: PictureReader
) -> dict[str, dict[str, list[WordMap]]]:
    """Return where models looked before each word, by the pictures' file names and the systems."""
    from pipeline.models.captioner import Captioner

    maps: dict[str, dict[str, list[WordMap]]] = {}
    for system, folder in attending.items():
        captioner = Captioner.from_folder(folder)
        for line in lines:
            if caption := line["captions"][system]:
                with Image.open(io.BytesIO(reader.read(line["file_name"]))) as picture:
                    found = captioner.attention(picture.convert("RGB"), caption)
                maps.setdefault(line["file_name"], {})[system] = word_maps(found.picture, found.words, found.weights)
    return maps


def write_contact_sheet(file: Path, lines: Sequence[dict[str, Any]], shown: Shown) -> None:
    """Write the first pictures with their captions as one image."""
    reader = PictureReader(paths.DATASET / "test")
    cells = [(reader.read(line["file_name"]), _cell_captions(line, shown)) for line in lines[:_PLOTTED]]
    gallery.contact_sheet(cells).save(file)


def _cell_captions(line: Mapping[str, Any], shown: Shown) -> dict[str, str]:
    """Return the captions of a picture on the contact sheet, in order."""
    captions = line["captions"]
    if shown.before:
        said = {"before": captions[shown.before], "after": captions[shown.model]}
    else:
        said = {"model": captions[shown.model]}
    return {**said, "people": line["references"][0]}
