"""What all captioners on a CNN share: how pictures become features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from pipeline.models.base import CaptionModel
from pipeline.models.cnn import encoder


class CnnEncoded(CaptionModel):
    """A captioner whose `image_encoder` is an EfficientNet.

    The encoder's batch norms always use their ImageNet statistics, also when its weights are trained: statistics of a
    few pictures are too noisy, and would depend on `finetune.accumulation` and the number of processes.
    """

    if TYPE_CHECKING:  # transformers sets it; at run time it would read such an annotation
        config: Any

    @property
    def notice(self) -> str:
        """The origin and licence of the encoder's weights."""
        return str(self.config.encoder_license)

    @property
    def image_encoder_settings(self) -> dict[str, Any]:
        """The `encoder_config`."""
        settings: dict[str, Any] = self.config.encoder_config.to_dict()
        return settings

    @property
    def features_shape(self) -> tuple[int, int]:
        """One token per cell of the grid, `(cells, width)`."""
        return encoder.grid_shape(self.config.encoder_config)

    @property
    def image_size(self) -> int:
        """The side of the square input picture, in pixels."""
        return int(self.config.encoder_config.image_size)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the image encoder stays in evaluation mode."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the grid of features, `(pictures, cells, width)`."""
        return encoder.encode(self.image_encoder, pixel_values)
