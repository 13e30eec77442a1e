"""The layout of Karpathy's splits: `dataset_*.json` with `images` (`filepath`, `filename`, `split`, `sentences`)."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named, required_list
from pipeline.data.sources.own_splits import split_named


def _read(file: CaptionsFile) -> Captions:
    """Read the file; rows are numbered by image."""
    encoding, value = file.json()
    images = required_list(value, "images", file.place)

    def rows() -> Iterator[CaptionRow]:
        for number, image in enumerate(images, start=1):
            usable = isinstance(image, dict) and isinstance(image.get("filename"), str)
            sentences = image.get("sentences") if usable else None
            if not isinstance(sentences, list):
                yield file.row(number, None, None)
                continue
            folder = image.get("filepath")
            name = f"{folder}/{image['filename']}" if folder and isinstance(folder, str) else image["filename"]
            split = split_named(image.get("split"))
            for sentence in sentences or [{"raw": ""}]:
                yield file.row(number, name, sentence.get("raw") if isinstance(sentence, dict) else None, split)

    return Captions(encoding, rows())


LAYOUT = Layout(
    name="Karpathy",
    expected="dataset_*.json (Karpathy)",
    suffixes=(".json",),
    recognises=named(r"dataset_.*\.json"),
    read=_read,
)
