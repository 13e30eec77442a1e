"""The layout of COCO: `captions_*.json` with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`)."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.sources.layout import CaptionRow, Captions, CaptionsFile, Layout, named, required_list
from pipeline.data.sources.own_splits import split_named


def _read(file: CaptionsFile) -> Captions:
    """Read the file; a row is an annotation."""
    encoding, value = file.json()
    images, annotations = (required_list(value, key, file.place) for key in ("images", "annotations"))
    names = {}
    for image in images:
        if isinstance(image, dict) and isinstance(image.get("id"), int | str):
            names[image["id"]] = image.get("file_name")
    # captions_train2017.json, captions_val2014.json
    split = split_named(file.base.removeprefix("captions_").split(".")[0])

    def rows() -> Iterator[CaptionRow]:
        for number, annotation in enumerate(annotations, start=1):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
                yield file.row(number, None, None)
                continue
            # An id without an image is reported as a picture that is missing.
            name = names.get(annotation["image_id"], f"image_id {annotation['image_id']}")
            yield file.row(number, name, annotation.get("caption"), split)

    return Captions(encoding, rows())


LAYOUT = Layout(
    name="COCO",
    expected="captions_*.json (COCO)",
    suffixes=(".json",),
    recognises=named(r"captions_.*\.json"),
    read=_read,
)
