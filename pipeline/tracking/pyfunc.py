"""The registered model as MLflow serves it (a `pyfunc` in models-from-code form): pictures in, captions out.

A picture is sent as bytes, base64 or a data: URL, never as a path or web address: a served model must not read its
host's files for clients. If a picture is invalid, the column `error` has the reason; the other pictures of the request
get their captions.
"""

from __future__ import annotations

import base64
import binascii
import numbers
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.data.images import OpenedPicture, PictureError
from pipeline.models.captioner import Captioner
from pipeline.models.neighbours import read_neighbours, settings_of
from pipeline.models.weights import weights_hash
from pipeline.runtime.memory_budget import MemoryBudget, bytes_of, return_large_blocks

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 50_000_000
DEFAULT_BEAMS, MAX_BEAMS = 3, 8
_BATCH = 8
_NO_WHITE_SPACE = str.maketrans("", "", " \t\r\n")


def picture(value: Any, side: int, budget: MemoryBudget) -> Image.Image:
    """Return the picture that a client sent, resized so that its shorter side has at most 2 x `side` pixels.

    Its memory is reserved in `budget` while it is decoded.

    Raises:
        ValueError: it is not a valid picture; the message is for the client.
    """
    if isinstance(value, str):
        if value.startswith("data:"):
            head, _, value = value.partition(",")
            if not head.endswith(";base64"):
                raise ValueError("a data: URL must be base64, like data:image/jpeg;base64,...")
        if len(value) > MAX_BYTES * 3 // 2:  # base64 with line breaks is 1.36 times as large
            raise ValueError(f"is larger than {MAX_BYTES // 2**20} MB")
        try:
            # GNU base64 breaks its output into lines.
            value = base64.b64decode(value.translate(_NO_WHITE_SPACE), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not base64; send a picture's bytes in base64 or as a data: URL, not a path") from None
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"is {type(value).__name__}; send a picture's bytes, in base64 or as a data: URL")
    if len(value) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES // 2**20} MB")
    try:
        opened = OpenedPicture(bytes(value), MAX_PIXELS, at_least=2 * side)
        with budget.reserve(opened.memory):
            try:
                return _reduced(opened, side)
            finally:
                opened.close()
    except PictureError as error:
        raise ValueError(str(error)) from None


def _reduced(opened: OpenedPicture, side: int) -> Image.Image:
    image = opened.decode()
    scale = 2 * side / min(image.size)
    return image.copy() if scale >= 1 else image.resize((round(image.width * scale), round(image.height * scale)))


class CaptionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow's class is untyped
    """Captions the pictures in the column `image`."""

    def load_context(self, context: Any) -> None:
        """Load the packaged checkpoint and index; captions are chosen as they were when the model was registered."""
        return_large_blocks()
        self._budget = MemoryBudget(bytes_of(0))
        checkpoint = Path(context.artifacts["checkpoint"])
        self._captioner = Captioner.from_folder(checkpoint)
        index = context.artifacts.get("neighbours")
        if settings := index or context.artifacts.get("settings"):
            generation, decoding = settings_of(Path(settings))
            self._captioner.generate_by(generation)
            if index and decoding.compares:
                self._captioner.choose_by(decoding, read_neighbours(Path(index), weights_hash(checkpoint)))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row per picture: its `caption`, or "" and the reason in `error`.

        Raises:
            MlflowException: `params` has a wrong value. The server answers 400 with the message and no stack trace.
        """
        beams = _beams(params)
        values = list(model_input["image"])
        rows: list[dict[str, str]] = []
        for first in range(0, len(values), _BATCH):  # bounds the number of decoded pictures
            rows += self._batch(values[first : first + _BATCH], beams)
        return pd.DataFrame(rows, columns=["caption", "error"])

    def _batch(self, values: list[Any], beams: int) -> list[dict[str, str]]:
        rows, good = [], []
        for value in values:
            try:
                good.append(picture(value, self._captioner.image_size, self._budget))
                rows.append({"caption": "", "error": ""})
            except ValueError as error:
                rows.append({"caption": "", "error": str(error)})
        captions = iter(self._captioner.caption(good, beams=beams) if good else [])
        return [row if row["error"] else {**row, "caption": next(captions)} for row in rows]


def _beams(params: dict[str, Any] | None) -> int:
    """Return the beam width that a client asks for.

    Raises:
        MlflowException: it is no whole number from 1 to `MAX_BEAMS`.
    """
    value = (params or {}).get("beams", DEFAULT_BEAMS)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 1 <= int(value) <= MAX_BEAMS:
        return int(value)
    found = "null" if value is None else str(value)[:40]
    raise MlflowException.invalid_parameter_value(
        f"params.beams: found {found}; send a whole number from 1 to {MAX_BEAMS}"
    )


mlflow.models.set_model(CaptionModel())
