"""The `config.json` of captioners with a recurrent decoder."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import EfficientNetConfig, PreTrainedConfig

from pipeline.config.errors import ConfigError
from pipeline.models import checkpoint_files
from pipeline.models.cnn.encoder import LICENSE

DECODERS = ("attention", "lstm", "rnn")

_MAX_IMAGE_SIZE = 1024  # pixels per side; EfficientNet-L2 has 800


class CnnCaptionerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Sizes of the encoder and the decoder. The defaults suit some hundred to some thousand photos on a CPU.

    Attributes:
        encoder_config: of the EfficientNet.
        encoder_license: where its weights come from, and their licence.
        decoder_type: `attention`, `lstm` or `rnn`; see `pipeline.models.cnn.decoder`.
        vocab_size: number of tokens.
        embedding_size: width of word embeddings.
        hidden_size: width of the recurrent state.
        image_width: width of the projected image features.
        attention_size: width in which attention compares states with cells of the grid.
        dropout: rate of dropout of image features, embeddings and outputs.
    """

    model_type = "cnn-captioner"
    sub_configs_defaults = {"encoder_config": EfficientNetConfig}  # noqa: RUF012  # as in transformers' own classes

    encoder_config: dict | EfficientNetConfig | None = None
    encoder_license: str = LICENSE
    decoder_type: str = "attention"
    vocab_size: int = 2000
    embedding_size: int = 256
    hidden_size: int = 384
    image_width: int = 256
    attention_size: int = 192
    dropout: float | int = 0.5
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    pad_token_id: int | None = 0


def check_encoder(file: Path, config: EfficientNetConfig) -> None:
    """Check the numbers of an encoder's configuration that cost memory or time before weights are compared.

    Raises:
        ConfigError: one is out of range.
    """
    checkpoint_files.check_size(file, "encoder_config.image_size", config.image_size, _MAX_IMAGE_SIZE)
    repeats = config.num_block_repeats
    for repeat in repeats:
        checkpoint_files.check_size(file, "encoder_config.num_block_repeats", repeat, checkpoint_files.MAX_LAYERS)
    layers = sum(math.ceil(config.depth_coefficient * repeat) for repeat in repeats)
    if not 1 <= layers <= checkpoint_files.MAX_LAYERS:
        raise ConfigError(
            f"{file}: encoder_config: num_block_repeats times depth_coefficient: found about {layers:.0f} blocks,"
            f" allowed are 1 to {checkpoint_files.MAX_LAYERS}; download or copy the checkpoint again"
        )
    if config.num_channels != 3:
        raise ConfigError(f"{file}: encoder_config.num_channels: found {config.num_channels}, pictures have 3")
