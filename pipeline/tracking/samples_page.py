"""An HTML page that shows training progress: validation pictures and their captions after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.dataset import Example, PictureReader
from pipeline.data.images import data_url
from pipeline.runtime import templates

_TEMPLATE = Path(__file__).with_name("samples_page.html.jinja")
_REFERENCES = 5  # shown per picture
_SIDE = 224  # pixels


def render(
    examples: Sequence[Example], reader: PictureReader, captions: Sequence[Sequence[str]], best_epoch: int
) -> str:
    """Return the page of the first examples, as many as have captions.

    Args:
        examples: the validation split.
        reader: reads their pictures.
        captions: `captions[e][i]` is the caption of example i after epoch e + 1.
        best_epoch: the epoch whose weights are kept; the page marks its captions.
    """
    shown = [
        {
            "picture": data_url(reader.read(example.file_name), _SIDE),
            "references": example.captions[:_REFERENCES],
            "captions": [(epoch, texts[i]) for epoch, texts in reversed(list(enumerate(captions, start=1)))],
        }
        for i, example in enumerate(examples[: len(captions[-1])])
    ]
    return templates.render(_TEMPLATE, shown=shown, epochs=len(captions), best_epoch=best_epoch)
