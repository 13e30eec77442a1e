"""Write a review queue for Label Studio or Argilla: pictures, the model's captions as predictions, and a settings file.

The folder can come back as a source: put it into data/raw with the export of the annotated project beside `pictures/`.
Pictures are written as the raw bytes of their source, so that they keep their SHA-256, and with it their split.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.dataset import Example, PictureReader, read_examples
from pipeline.data.images import decode
from pipeline.data.split import SPLITS
from pipeline.models.captioner import Captioner
from pipeline.runtime.atomic_files import swapped_in
from pipeline.serving.bulk_work import NamedModel
from pipeline.serving.corrections import Corrections, picture_suffix
from pipeline.serving.raw_pictures import raw_picture

Format = Literal["label-studio", "argilla"]
FILES = {"label-studio": "tasks.json", "argilla": "records.json"}
PICTURES = "pictures"
_POOL = 10  # the model captions so many times `count` pictures to find those it is least sure of
_NO_AGENT = re.compile(r"[^A-Za-z0-9_:./ -]")  # characters that Argilla refuses in the name of an agent
_LABEL_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <Header value="In the data set: $known"/>
  <TextArea name="caption" toName="image" editable="true" maxSubmissions="5"/>
</View>
"""
_ARGILLA_SETTINGS = {
    "guidelines": "Write or correct the caption of the picture.",
    "fields": [
        {"name": "image", "title": "Picture", "required": True, "settings": {"type": "image"}},
        {
            "name": "known",
            "title": "In the data set",
            "required": False,
            "settings": {"type": "text", "use_markdown": False},
        },
    ],
    "questions": [
        {
            "name": "caption",
            "title": "Caption",
            "description": None,
            "required": True,
            "settings": {"type": "text", "use_markdown": False},
        }
    ],
    "vectors": [],
    "metadata": [],
    "allow_extra_metadata": True,
}


@dataclass(frozen=True)
class Queued:
    """A picture to review.

    Attributes:
        example: the picture in the data set.
        data: its bytes: as stored in the data set, and for those that are written the raw ones.
        caption: what the model says.
        score: mean log-likelihood of the caption per token.
    """

    example: Example
    data: bytes
    caption: str
    score: float

    @property
    def file_name(self) -> str:
        """Path from the folder."""
        return f"{PICTURES}/{self.example.sha256}.{picture_suffix(self.data)}"


def export(params: Params, kind: Format, out: Path, count: int, find: Callable[[], NamedModel]) -> str:
    """Write the pictures that the model is least sure of and that nobody has reviewed; return the last line to print.

    Args:
        params: all of params.yaml.
        kind: for which tool.
        out: a folder that does not exist yet.
        count: how many pictures, at most.
        find: finds the model.

    Raises:
        ConfigError: the folder exists.
        DataError: there is no data set, or nothing is left to review.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; name a new folder")
    reviewed = {one.sha256 for one in Corrections().counting()}
    waiting = [pair for pair in _examples() if pair[1].sha256 not in reviewed]
    if not waiting:
        raise DataError(f"{paths.DATASET}: every picture was reviewed already; there is nothing to export")
    model = find()
    pool = sorted(waiting, key=lambda pair: _draw(pair[1]))[: count * _POOL]
    queue = sorted(_captioned(params, model.load(), pool), key=lambda one: (one.score, one.example.sha256))[:count]
    queue = [replace(one, data=_raw(one.example, one.data)) for one in queue]
    with swapped_in(out) as (place,):
        (place / PICTURES).mkdir(parents=True)
        for one in queue:
            (place / one.file_name).write_bytes(one.data)
        if kind == "label-studio":
            content: Any = [_task(one, out.name, model.uri) for one in queue]
            (place / "label-config.xml").write_text(_LABEL_CONFIG, encoding="utf-8")
        else:
            content = [_record(one, model.uri) for one in queue]
            _write(place / "settings.json", _ARGILLA_SETTINGS)
        _write(place / FILES[kind], content)
    return f"{len(queue)} pictures with captions by {model.uri} in {out}; docs/corrections.md says how to import them"


def _examples() -> Iterator[tuple[str, Example]]:
    """Yield every example of the data set, with its split."""
    for split in SPLITS:
        if (paths.DATASET / split).is_dir():
            yield from ((split, example) for example in read_examples(paths.DATASET / split))


def _draw(example: Example) -> bytes:
    """Return a key that draws pictures from anywhere in the data set, always the same ones."""
    return hashlib.sha256(example.sha256.encode()).digest()


def _captioned(params: Params, captioner: Captioner, pool: Sequence[tuple[str, Example]]) -> Iterator[Queued]:
    """Caption pictures in batches."""
    size, readers = params.runtime.caption_batch_size, {s: PictureReader(paths.DATASET / s) for s, _ in pool}
    for start in range(0, len(pool), size):
        part = pool[start : start + size]
        stored = [readers[split].read(example.file_name) for split, example in part]
        prepared = [captioner.prepare(decode(data, params.ingest.max_pixels)) for data in stored]
        said = captioner.scored(prepared, [0] * len(part), count=1, beams=params.evaluate.beams, sampling=False)
        for (_, example), data, captions in zip(part, stored, said, strict=True):
            text, score = (captions[0].text, captions[0].score) if captions else ("", -math.inf)
            yield Queued(example, data, text, score)


def _raw(example: Example, stored: bytes) -> bytes:
    """Return the raw bytes; if the source has gone, the picture as stored, which is a near-duplicate of them."""
    try:
        return raw_picture(example)
    except DataError:
        return stored


def _task(one: Queued, folder: str, model: str) -> dict[str, Any]:
    """Return a task of Label Studio with a prediction, for local storage."""
    region = {
        "id": one.example.sha256[:10],
        "from_name": "caption",
        "to_name": "image",
        "type": "textarea",
        "value": {"text": [one.caption]},
    }
    return {
        "data": {
            "image": f"/data/local-files/?d={folder}/{one.file_name}",
            "known": " / ".join(one.example.captions),
            "sha256": one.example.sha256,
        },
        "predictions": [{"model_version": model, "score": _probability(one.score), "result": [region]}],
    }


def _record(one: Queued, model: str) -> dict[str, Any]:
    """Return a record of Argilla with a suggestion, as `Record.to_dict` writes it, with the picture in it."""
    kind = picture_suffix(one.data).replace("jpg", "jpeg")
    picture = f"data:image/{kind};base64,{base64.b64encode(one.data).decode()}"
    suggestion = {"value": one.caption, "score": _probability(one.score), "agent": _NO_AGENT.sub("-", model)}
    return {
        "id": one.example.sha256,
        "fields": {"image": picture, "known": " / ".join(one.example.captions)},
        "metadata": {"picture": one.file_name},
        "suggestions": {"caption": suggestion},
        "responses": {},
        "vectors": {},
        "status": "pending",
        "_server_id": None,
    }


def _probability(score: float) -> float:
    """Return the geometric mean of the probabilities of a caption's tokens (0 to 1)."""
    return round(math.exp(score), 6)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
