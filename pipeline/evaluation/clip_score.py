"""CLIPScore and RefCLIPScore: does a caption fit its picture, by a CLIP model? (Hessel et al., EMNLP 2021)

CLIPScore(c, v) = 2.5 max(cos(c, v), 0); RefCLIPScore is the harmonic mean of CLIPScore and max(max_r cos(c, r), 0).
c, v and r are CLIP's embeddings of the caption, the picture and the references; texts begin with "A photo depicts".
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from pipeline.config.errors import ConfigError
from pipeline.evaluation.scores_report import CLIP_SCORES
from pipeline.models import checkpoint_files
from pipeline.runtime.progress import progress_bar

_PREFIX = "A photo depicts "
_WEIGHT = 2.5
_BATCH = 32

Embeddings = npt.NDArray[np.float32]  # a row of length 1 for each picture or text


class ClipScorer:
    """A CLIP model, and the embeddings of the pictures that it judges captions of.

    Args:
        folder: the checkpoint: safetensors, tokenizer and image processor.
        pictures: the bytes of each picture.
        references: of each picture one or more.

    Raises:
        ConfigError: the folder has no CLIP model, or it can't be loaded.
    """

    def __init__(self, folder: Path, pictures: Sequence[bytes], references: Sequence[Sequence[str]]) -> None:
        self._model, self._tokenizer, self._image_processor = _load(folder)
        self._pictures = self._embed_pictures(pictures)
        self._references = self._embed_texts([*chain.from_iterable(references)])
        self._starts = np.cumsum([0, *map(len, references)])

    def scores(self, captions: Sequence[str]) -> dict[str, float]:
        """Return the means over all pictures of the scores in `CLIP_SCORES`.

        Args:
            captions: one per picture.
        """
        texts = self._embed_texts(captions)
        fits = _WEIGHT * np.maximum((texts * self._pictures).sum(axis=1), 0)
        spans = zip(texts, self._starts[:-1], self._starts[1:], strict=True)
        agrees = np.array([max(0.0, float((self._references[a:b] @ text).max())) for text, a, b in spans])
        both = 2 * fits * agrees / np.maximum(fits + agrees, 1e-12)
        return dict(zip(CLIP_SCORES, (float(fits.mean()), float(both.mean())), strict=True))

    @torch.inference_mode()
    def _embed_pictures(self, pictures: Sequence[bytes]) -> Embeddings:
        rows = []
        for first in progress_bar(range(0, len(pictures), _BATCH), desc="evaluate CLIPScore", unit=" batches"):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures[first : first + _BATCH]]
            pixels = self._image_processor(images=images, return_tensors="pt")["pixel_values"]
            rows.append(_unit(self._model.get_image_features(pixel_values=pixels).pooler_output))
        return np.concatenate(rows)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Embeddings:
        rows = []
        longest = self._model.config.text_config.max_position_embeddings
        for first in range(0, len(texts), _BATCH):
            batch = [_PREFIX + text for text in texts[first : first + _BATCH]]
            tokens = self._tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            found = self._model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
            rows.append(_unit(found.pooler_output))
        return np.concatenate(rows)


def _unit(rows: torch.Tensor) -> Embeddings:
    found: Embeddings = torch.nn.functional.normalize(rows.float(), dim=-1).numpy()
    return found


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and image processor."""
    config = folder / "config.json"
    if (model_type := checkpoint_files.read_object(config).get("model_type")) != "clip":
        raise ConfigError(
            f"{config}: model_type is {str(model_type)[:80]!r}, not 'clip'; set evaluate.clip_score.checkpoint to a"
            " CLIP model like openai/clip-vit-large-patch14, or to null"
        )
    checkpoint_files.check_json_sizes(folder)
    try:
        _check_weights(folder)
        return (
            CLIPModel.from_pretrained(folder, use_safetensors=True).eval(),
            AutoTokenizer.from_pretrained(folder),
            CLIPImageProcessorPil.from_pretrained(folder),
        )
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise many kinds
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{folder}: can't be loaded as a CLIP model: {type(error).__name__}: {reason};"
            " download it again, with .safetensors weights"
        ) from None


def _check_weights(folder: Path) -> None:
    """Check that the weights are those of the config, before anything large is built.

    transformers would fill what is missing with random values.

    Raises:
        ConfigError: they are not.
    """
    config = CLIPConfig.from_pretrained(folder)
    layers = max(config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers)
    if layers > checkpoint_files.MAX_LAYERS:
        raise ConfigError(f"{folder}: has {layers:,} layers; the limit is {checkpoint_files.MAX_LAYERS}")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in CLIPModel(config).named_parameters()}
    shapes = checkpoint_files.weight_shapes(folder)
    if wrong := [name for name, shape in expected.items() if shapes.get(name) != shape]:
        raise ConfigError(
            f"{folder}: {wrong[0]} should have the shape {expected[wrong[0]]}, found {shapes.get(wrong[0])};"
            " download the checkpoint again"
        )
